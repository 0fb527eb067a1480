// What a device decodes are the bytes that were encoded, and nothing around them is touched.
#include "codec/device_decoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <string>

#include "base/units.h"
#include "codec/chunk_coder.h"
#include "codec/frame_decoder.h"
#include "codec/frames.h"
#include "memory/device_kinds.h"

namespace tensorstream {
namespace {

constexpr auto kCanary = std::byte{0xC3};

/// Frames one behind the other, and the places that they are decoded to.
class Batch {
 public:
  /// Adds a frame of at most kFrameBytes, `gap_bytes` (a multiple of 16) behind what is there.
  void add(Dtype dtype, std::uint32_t level, std::span<const std::byte> bytes,
           std::uint64_t gap_bytes = 16) {
    add_frame(encode_frame(dtype, bytes, level), bytes, gap_bytes);
  }
  void add_frame(const Bytes& frame, std::span<const std::byte> bytes, std::uint64_t gap_bytes) {
    ASSERT_FALSE(verify_frame(parsed(frame)));
    expected_.resize(align_up(expected_.size(), kFrameAlignment) + gap_bytes, kCanary);
    frames_.push_back({encoded_.size(), expected_.size()});
    encoded_.insert(encoded_.end(), frame.begin(), frame.end());
    expected_.insert(expected_.end(), bytes.begin(), bytes.end());
    kinds_.push_back(parsed(frame).header().kind);
  }

  const std::vector<BatchedFrame>& frames() const { return frames_; }
  const Bytes& encoded() const { return encoded_; }
  /// What the target holds in the end: canaries in the gaps, and a page of them behind.
  Bytes expected() const {
    Bytes all = expected_;
    all.resize(all.size() + 4096, kCanary);
    return all;
  }
  std::ptrdiff_t coded() const { return std::ranges::count(kinds_, FrameKind::kCoded); }

 private:
  std::vector<BatchedFrame> frames_;
  std::vector<FrameKind> kinds_;
  Bytes encoded_;
  Bytes expected_;
};

class DeviceDecoding : public OnMemoryDevice {
 protected:
  void SetUp() override {
    OnMemoryDevice::SetUp();
    if (device_ != nullptr) decoder_ = create_device_decoder(*device_);
  }
  void TearDown() override {
    decoder_.reset();
    OnMemoryDevice::TearDown();
  }

  std::unique_ptr<DeviceMemory> on_device(std::span<const std::byte> bytes) const {
    auto memory = allocate_open(std::max<std::uint64_t>(bytes.size(), 16));
    device_->caller_stream().copy_to_device(memory->data(), bytes.data(), bytes.size());
    device_->caller_stream().synchronize();
    return memory;
  }

  void expect_decodes(const Batch& batch) const {
    const auto encoded = on_device(batch.encoded());
    const auto table = on_device(std::as_bytes(std::span(batch.frames())));
    const Bytes expected = batch.expected();
    const auto decoded = on_device(Bytes(expected.size(), kCanary));
    const auto stream = device_->create_stream();
    decoder_->decode(*stream, batch.frames(), table->data(), encoded->data(), decoded->data());
    stream->synchronize();
    const Bytes found = read(decoded->data(), expected.size());
    const auto [at, other] = std::ranges::mismatch(found, expected);
    EXPECT_TRUE(at == found.end()) << "byte " << at - found.begin() << " of " << found.size();
  }

  std::unique_ptr<DeviceDecoder> decoder_;
};

constexpr std::array<std::uint32_t, 3> kLevels = {1, 4, 7};

TEST_P(DeviceDecoding, AnEmptyBatch) { expect_decodes(Batch()); }

TEST_P(DeviceDecoding, AllKindsInOneBatch) {
  Batch batch;
  for (const std::uint32_t level : kLevels) {
    for (const Dtype dtype : kFloats) {
      batch.add(dtype, level, gaussian_weights(dtype, 70'000, usual_sigma(dtype), level));
    }
    batch.add(Dtype::kI8, level, random_bytes(40'003, level));
  }
  EXPECT_EQ(batch.coded(), 15);
  expect_decodes(batch);
}

TEST_P(DeviceDecoding, AWholeFrameOfEachKind) {
  Batch batch;
  for (const Dtype dtype : kFloats) {
    batch.add(dtype, 7,
              gaussian_weights(dtype, kFrameBytes * 8 / dtype_bits(dtype), usual_sigma(dtype)));
  }
  batch.add(Dtype::kI8, 1, random_bytes(kFrameBytes));
  expect_decodes(batch);
}

TEST_P(DeviceDecoding, EveryPatternOfAShortType) {
  Batch batch;
  for (const Dtype dtype : kFloats) {
    const std::uint32_t element_bytes = dtype_bits(dtype) / 8;
    const std::uint32_t bits = std::min(16U, 8 * element_bytes);
    Bytes bytes = gaussian_weights(dtype, 900'000 / element_bytes, usual_sigma(dtype));
    Bytes patterns;
    for (std::uint32_t pattern = 0; pattern < 1U << bits; ++pattern) {
      append_element(patterns, pattern << (8 * element_bytes - bits), element_bytes);
    }
    std::ranges::copy(patterns, bytes.begin() + static_cast<std::ptrdiff_t>(77 * element_bytes));
    for (const std::uint32_t level : kLevels) batch.add(dtype, level, bytes);
  }
  EXPECT_EQ(batch.coded(), 15);
  expect_decodes(batch);
}

/// Lengths near the ends of groups of 8, tiles and chunks, and some between.
std::vector<std::size_t> tail_lengths() {
  std::vector<std::size_t> lengths;
  for (std::size_t length = 1; length <= 2 * kChunkElements; ++length) {
    const std::size_t in_tile = length % kTileElements;
    const bool near = in_tile <= 1 || in_tile == kTileElements - 1;
    if (near || length % 611 == 0 || (length > 4096 && length <= 4096 + 40)) {
      lengths.push_back(length);
    }
  }
  return lengths;
}

TEST_P(DeviceDecoding, Tails) {
  for (const Dtype dtype : kFloats) {
    Batch batch;
    const std::uint32_t element_bytes = dtype_bits(dtype) / 8;
    const Bytes weights = gaussian_weights(dtype, 2 * kChunkElements, usual_sigma(dtype));
    for (const std::size_t length : tail_lengths()) {
      batch.add(dtype, kLevels[length % 3], std::span(weights).first(length * element_bytes),
                16 * (length % 3));
    }
    EXPECT_GT(batch.coded(), 40);
    expect_decodes(batch);
  }
}

TEST_P(DeviceDecoding, TailsOfRawFrames) {
  Batch batch;
  const Bytes bytes = random_bytes(40'000);
  for (const std::size_t length :
       {1U, 15U, 16U, 17U, 511U, 512U, 16383U, 16384U, 16385U, 32768U, 39999U}) {
    batch.add(Dtype::kU8, 1, std::span(bytes).first(length));
  }
  expect_decodes(batch);
}

TEST_P(DeviceDecoding, ConstantsAndTwoSymbols) {
  Batch batch;
  for (const Dtype dtype : kFloats) {
    const std::uint32_t element_bytes = dtype_bits(dtype) / 8;
    const auto rounded = [&](double value) { return round_to(value, format_of(dtype)); };
    for (const std::size_t count : {1024UL, 8193UL, 100'000UL}) {
      batch.add(dtype, 7, repeated(std::array{0U}, element_bytes, count));
      batch.add(dtype, 4, repeated(std::array{~0U}, element_bytes, count));
      batch.add(dtype, 1, repeated(std::array{rounded(1), rounded(-2)}, element_bytes, count));
    }
  }
  expect_decodes(batch);
}

TEST_P(DeviceDecoding, ElementsThatTheSampleDidNotShow) {
  // Whole tiles that reach the deepest level with all of their elements, or are literals.
  Batch batch;
  for (const Dtype dtype : kFloats) {
    const FloatFormat format = format_of(dtype);
    for (const std::uint32_t level : kLevels) {
      Bytes bytes;
      for (std::uint32_t i = 0; i < 200'000; ++i) {
        const bool counted = i % kChunkElements < kTileElements;
        append_element(
            bytes, round_to(counted ? 1 : std::ldexp(1.0, -4 - static_cast<int>(i % 4)), format),
            dtype_bits(dtype) / 8);
      }
      batch.add(dtype, level, bytes);
    }
  }
  EXPECT_GT(batch.coded(), 6);
  expect_decodes(batch);
}

TEST_P(DeviceDecoding, LiteralsInEveryChunk) {
  Batch batch;
  std::mt19937 random(4);
  for (const Dtype dtype : kFloats) {
    const std::uint32_t element_bytes = dtype_bits(dtype) / 8;
    Bytes bytes = gaussian_weights(dtype, 100'000, usual_sigma(dtype));
    for (std::size_t i = 0; i < 3000; ++i) {
      const std::size_t element = random() % 100'000;
      bytes[element * element_bytes + element_bytes - 1] = static_cast<std::byte>(random());
    }
    for (const std::uint32_t level : kLevels) batch.add(dtype, level, bytes);
  }
  EXPECT_EQ(batch.coded(), 15);
  expect_decodes(batch);
}

/// All that FORMAT.md allows, `widths` first.
void append_widths(LevelWidths widths, std::vector<LevelWidths>& all) {
  if (widths.ranked_symbols() > kMostRankedSymbols) return;
  all.push_back(widths);
  if (widths.count == kMostLevels) return;
  ++widths.count;
  for (std::uint8_t width = 1; width <= kMostWidth; ++width) {
    widths.bits[widths.count - 1] = width;
    append_widths(widths, all);
  }
}

/// A frame whose code has the given widths, worth it or not.
Bytes frame_with(Dtype dtype, const LevelWidths& widths, std::span<const std::byte> bytes) {
  const ElementLayout layout = *layout_of(dtype);
  std::vector<std::uint8_t> symbols(std::size_t{1} << layout.symbol_bits);
  RankCode code{widths, {}};
  // Any order will do: those in the middle are the exponents of weights.
  for (std::uint32_t rank = 0; rank < widths.ranked_symbols(); ++rank) {
    code.symbols[rank] = static_cast<std::uint8_t>(
        (symbols.size() / 2 + symbols.size() - 3 - rank) % symbols.size());
  }
  const ChunkCoding coding{portable_kernels(), layout, code};
  const std::uint64_t chunk_bytes = std::uint64_t{kChunkElements} * layout.element_bytes;
  FrameHeader header{
      FrameKind::kCoded, 0, static_cast<std::uint32_t>(bytes.size()), 0, layout, code};
  header.chunks = coded_chunks(bytes.size() / layout.element_bytes);
  Bytes frame(frame_parts(header.chunks, widths.count).data);
  ChunkScratch scratch;
  std::vector<ChunkEntry> entries;
  for (std::uint32_t i = 0; i < header.chunks; ++i) {
    Bytes chunk(8 * chunk_bytes);
    const auto part =
        bytes.subspan(i * chunk_bytes)
            .first(std::min<std::uint64_t>(chunk_bytes, bytes.size() - i * chunk_bytes));
    const auto encoded = encode_chunk(coding, part, scratch, chunk).value();
    entries.push_back({frame.size(), encoded.counts});
    frame.insert(frame.end(), chunk.begin(), chunk.begin() + encoded.size_bytes);
  }
  frame.resize(frame.size() + kFrameTailBytes);
  header.frame_bytes = static_cast<std::uint32_t>(frame.size());
  seal_frame(header, entries, frame);
  return frame;
}

TEST_P(DeviceDecoding, EveryWidthsThatAFrameMayHave) {
  std::vector<LevelWidths> all;
  append_widths({1, {kFirstWidth}}, all);
  EXPECT_GT(all.size(), 100U);
  for (const Dtype dtype : kFloats) {
    Batch batch;
    std::uint64_t seed = 0;
    for (const LevelWidths& widths : all) {
      const Bytes bytes = gaussian_weights(dtype, 9000, usual_sigma(dtype), ++seed);
      batch.add_frame(frame_with(dtype, widths, bytes), bytes, 0);
    }
    expect_decodes(batch);
  }
}

TEST_P(DeviceDecoding, RandomTensors) {
  std::mt19937 random(5);
  Batch batch;
  for (int i = 0; i < 120; ++i) {
    const Dtype dtype = kFloats[random() % kFloats.size()];
    const std::size_t count = 1 + random() % (3 * kChunkElements);
    const double sigma = std::ldexp(usual_sigma(dtype), static_cast<int>(random() % 4) - 2);
    batch.add(dtype, kLevels[random() % 3], gaussian_weights(dtype, count, sigma, random()),
              16 * (random() % 5));
  }
  expect_decodes(batch);
}

TEST_P(DeviceDecoding, InTheOrderOfTheStream) {
  const Bytes weights = gaussian_weights(Dtype::kBf16, 300'000, 0.02);
  Batch batch;
  batch.add(Dtype::kBf16, 1, weights, 0);
  const auto encoded = allocate_open(batch.encoded().size());
  const auto table = allocate_open(sizeof(BatchedFrame));
  const auto decoded = allocate_open(weights.size());
  Bytes found(weights.size());
  const auto stream = device_->create_stream();
  stream->copy_to_device(encoded->data(), batch.encoded().data(), batch.encoded().size());
  const auto entries = std::as_bytes(std::span(batch.frames()));
  stream->copy_to_device(table->data(), entries.data(), entries.size());
  decoder_->decode(*stream, batch.frames(), table->data(), encoded->data(), decoded->data());
  stream->copy_to_host(found.data(), decoded->data(), found.size());
  stream->synchronize();
  EXPECT_EQ(found, weights);
}

/// As the batches of a group are: one target, but tables and bytes apart.
TEST_P(DeviceDecoding, RunsOfUnlikeLengths) {
  Batch batch;
  for (std::uint64_t i = 0; i < 50; ++i) {
    const Dtype dtype = kFloats[i % kFloats.size()];
    batch.add(dtype, 1, gaussian_weights(dtype, 5'000 + 100 * i, usual_sigma(dtype), i));
  }
  const auto table = on_device(std::as_bytes(std::span(batch.frames())));
  const auto encoded = on_device(batch.encoded());
  const auto encoded_again = on_device(batch.encoded());
  const std::span frames(batch.frames());
  std::vector<FrameRun> runs;
  for (std::size_t first = 0, run = 0; first < frames.size(); ++run) {
    const std::size_t count = std::min(run % 3, frames.size() - first);  // 0, 1 and 2 of them
    const std::byte* const bytes = run % 2 == 0 ? encoded->data() : encoded_again->data();
    runs.push_back(
        {frames.subspan(first, count), table->data() + first * sizeof(BatchedFrame), bytes});
    first += count;
  }
  const Bytes expected = batch.expected();
  const auto decoded = on_device(Bytes(expected.size(), kCanary));
  const auto stream = device_->create_stream();
  decoder_->decode(*stream, runs, decoded->data());
  stream->synchronize();
  EXPECT_TRUE(read(decoded->data(), expected.size()) == expected);
}

TS_ON_EACH_MEMORY_DEVICE(DeviceDecoding);

}  // namespace
}  // namespace tensorstream

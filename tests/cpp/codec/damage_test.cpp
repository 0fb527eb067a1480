// Damaged and forged frames: an error, and nothing read or written where it must not be.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <random>
#include <string>

#include "codec/frame_decoder.h"
#include "codec/frames.h"
#include "codec/tensor_decoder.h"
#include "made_bytes/rounds.h"

namespace tensorstream {
namespace {

const TensorName kName{"model.safetensors", "layer.weight"};

/// A raw frame and a shorter coded one.
Bytes mixed_weights() {
  Bytes bytes = random_bytes(kFrameBytes);
  const Bytes rest = gaussian_weights(Dtype::kBf16, 300'001, 0.02);
  bytes.insert(bytes.end(), rest.begin(), rest.end());
  return bytes;
}

/// The error of decoding; empty where there was none.
std::string error_of(std::span<const std::byte> encoded, std::uint64_t size_bytes) {
  try {
    Bytes out(size_bytes);
    decode_tensor(parse_tensor(encoded, size_bytes, kName), out, 1, kName);
    return "";
  } catch (const FormatError& error) {
    EXPECT_EQ(error.path(), kName.path);
    EXPECT_EQ(error.tensor(), kName.tensor);
    return error.what();
  }
}

TEST(Damage, EachOfAThousandFlippedBitsIsFound) {
  const Bytes weights = mixed_weights();
  Bytes encoded = encoded_tensor(Dtype::kBf16, weights, 9);
  ASSERT_EQ(error_of(encoded, weights.size()), "");
  std::mt19937_64 random(1);
  for (int i = 0; i < rounds(1000); ++i) {
    // Half of them in the headers and indexes, which are few of the bytes.
    const std::size_t at = random() % (i % 2 == 0 ? encoded.size() : 2000);
    const auto bit = static_cast<std::byte>(1U << (random() % 8));
    encoded[at] ^= bit;
    EXPECT_NE(error_of(encoded, weights.size()), "") << "byte " << at;
    encoded[at] ^= bit;
  }
}

TEST(Damage, EveryFlippedBitOfAHeaderAndAnIndexIsFound) {
  const Bytes weights = gaussian_weights(Dtype::kF16, 40'000, 0.02);
  Bytes frame = encode_frame(Dtype::kF16, weights);
  for (std::size_t bit = 0; bit < 8 * frame_parts(5, 6).data; ++bit) {
    frame[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    EXPECT_TRUE(std::holds_alternative<FrameFault>(FrameView::parse(frame))) << bit;
    frame[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
  }
}

TEST(Damage, EachOfAThousandTruncationsIsFound) {
  const Bytes weights = mixed_weights();
  const Bytes encoded = encoded_tensor(Dtype::kBf16, weights, 9);
  std::mt19937_64 random(2);
  for (int i = 0; i < rounds(1000); ++i) {
    const std::size_t kept =
        i < rounds(100) ? static_cast<std::size_t>(i) : random() % encoded.size();
    // Copied, so that a read beyond the end is one beyond an allocation.
    const Bytes part(encoded.begin(), encoded.begin() + static_cast<std::ptrdiff_t>(kept));
    EXPECT_NE(error_of(part, weights.size()), "") << kept;
  }
}

TEST(Damage, ErrorsNameTheFrameAndTheChunk) {
  const Bytes weights = mixed_weights();
  Bytes encoded = encoded_tensor(Dtype::kBf16, weights, 9);
  const auto frames = parse_tensor(encoded, weights.size(), kName);
  const auto at = frames[1].chunk(3).data() - encoded.data();
  encoded[static_cast<std::size_t>(at)] ^= std::byte{1};
  EXPECT_EQ(error_of(encoded, weights.size()),
            "model.safetensors: tensor 'layer.weight': chunk checksum: frame 1, chunk 3 is "
            "damaged: pack or encode the tensor again");
  EXPECT_THROW(verify_tensor(parse_tensor(encoded, weights.size(), kName), kName), FormatError);
}

TEST(Damage, TheFirstOfSeveralFaultsIsNamed) {
  const Bytes weights = gaussian_weights(Dtype::kBf16, 2 * kFrameBytes, 0.02);
  Bytes encoded = encoded_tensor(Dtype::kBf16, weights, 9);
  const auto frames = parse_tensor(encoded, weights.size(), kName);
  for (const std::size_t frame : {3U, 2U, 1U}) {
    encoded[static_cast<std::size_t>(frames[frame].chunk(9).data() - encoded.data())] ^=
        std::byte{1};
  }
  Bytes out(weights.size());
  try {
    decode_tensor(parse_tensor(encoded, weights.size(), kName), out, 4, kName);
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_EQ(error.rule().substr(0, 32), "chunk checksum: frame 1, chunk 9");
  }
}

TEST(Damage, FramesOfAnotherTensorAreRefused) {
  const Bytes weights = gaussian_weights(Dtype::kBf16, 100'000, 0.02);
  const Bytes encoded = encoded_tensor(Dtype::kBf16, weights, 9);
  EXPECT_NE(error_of(encoded, weights.size() - 2), "");
  EXPECT_NE(error_of(encoded, weights.size() + 2), "");
  // As many bytes as wanted, but in other frames.
  const Bytes half = encode_frame(Dtype::kU8, Bytes(kFrameBytes / 2));
  Bytes other = encode_frame(Dtype::kU8, Bytes(kFrameBytes));
  other.insert(other.begin(), half.begin(), half.end());
  EXPECT_NE(error_of(other, 3 * kFrameBytes / 2), "");
  Bytes more = encoded;
  more.push_back(std::byte{0});
  EXPECT_NE(error_of(more, weights.size()), "");
  Bytes out(weights.size() + 1);
  const auto frames = parse_tensor(encoded, weights.size(), kName);
  EXPECT_THROW(decode_tensor(frames, out, 1, kName), FormatError);
  EXPECT_EQ(decode_frame(frames[0], out)->rule, FrameRule::kDecodedSize);
  EXPECT_EQ(decode_chunk(frames[0], 0, out)->rule, FrameRule::kDecodedSize);
}

/// Frames whose checksums are right and whose fields are not.
class Forgery : public ::testing::Test {
 protected:
  const Bytes weights_ = gaussian_weights(Dtype::kBf16, 40'000, 0.02);
  const Bytes sound_ = encode_frame(Dtype::kBf16, weights_);

  static std::string rule_of(const Bytes& frame) {
    const auto parsed = FrameView::parse(frame);
    if (const auto* fault = std::get_if<FrameFault>(&parsed)) {
      return std::string(rule_name(fault->rule));
    }
    return "";
  }
  std::string rule_after(const std::function<void(Bytes&)>& change) const {
    Bytes frame = sound_;
    change(frame);
    reseal(frame);
    return rule_of(frame);
  }
  template <typename Number>
  std::string rule_with(std::uint64_t offset, Number number) const {
    return rule_after([&](Bytes& frame) { put(frame, offset, number); });
  }
};

TEST_F(Forgery, OfTheHeader) {
  ASSERT_EQ(rule_of(sound_), "");
  EXPECT_EQ(rule_with(0, std::uint32_t{7}), "magic");
  EXPECT_EQ(rule_with(4, std::uint32_t{2}), "version");
  EXPECT_EQ(rule_with(kFrameBytesAt, std::uint32_t{0}), "header");
  EXPECT_EQ(rule_with(kFrameBytesAt, static_cast<std::uint32_t>(sound_.size() + 1)),
            "frame length");
  EXPECT_EQ(rule_with(kDecodedBytesAt, std::uint32_t{0}), "header");
  EXPECT_EQ(rule_with(kDecodedBytesAt, std::uint32_t{79'999}), "header");
  EXPECT_EQ(rule_with(kDecodedBytesAt, ~std::uint32_t{0}), "header");
  EXPECT_EQ(rule_with(kKindAt, std::uint8_t{0}), "header");
  EXPECT_EQ(rule_with(kKindAt, std::uint8_t{2}), "header");
  EXPECT_EQ(rule_with(kElementBytesAt, std::uint8_t{3}), "header");
  EXPECT_EQ(rule_with(kSymbolBitsAt, std::uint8_t{9}), "header");
  EXPECT_EQ(rule_with(kWidthsAt, std::uint8_t{1}), "header");
  EXPECT_EQ(rule_with(kWidthsAt + 1, std::uint8_t{4}), "header");
  EXPECT_EQ(rule_with(kWidthsAt + 7, std::uint8_t{1}), "header");
  EXPECT_EQ(rule_after([](Bytes& frame) {
              put(frame, kLevelsAt, std::uint8_t{6});
              put(frame, kWidthsAt, std::uint64_t{0x030303030302});
            }),
            "header");
}

TEST_F(Forgery, OfTheNumberOfChunks) {
  for (const std::uint32_t chunks : {0U, 4U, 6U, 1000U, 1U << 30U, ~0U}) {
    EXPECT_EQ(rule_with(kChunksAt, chunks), "header") << chunks;
  }
}

TEST_F(Forgery, OfTheIndex) {
  for (std::uint32_t entry = 0; entry <= 5; ++entry) {
    const std::uint64_t at = kIndexAt + 4ULL * entry;
    const auto offset = number_at<std::uint32_t>(sound_, at);
    for (const std::uint32_t forged : {0U, offset - 1, offset + 1, offset + 1000, ~0U}) {
      EXPECT_EQ(rule_with(at, forged), "index") << entry << " " << forged;
    }
  }
  const FrameParts parts = frame_parts(5, number_at<std::uint8_t>(sound_, kLevelsAt));
  for (std::uint64_t at = parts.counts; at < parts.counts + 60; at += 2) {
    EXPECT_EQ(rule_with(at, std::uint16_t{8193}), "index");
  }
}

TEST_F(Forgery, OfAGapBehindTheIndex) {
  const std::uint64_t data = number_at<std::uint32_t>(sound_, kIndexAt) * kFrameAlignment;
  EXPECT_EQ(rule_after([&](Bytes& frame) {
              frame.insert(frame.begin() + static_cast<std::ptrdiff_t>(data), 16, std::byte{0});
              put(frame, kFrameBytesAt, static_cast<std::uint32_t>(frame.size()));
              for (std::uint64_t at = kIndexAt; at <= kIndexAt + 20; at += 4) {
                put(frame, at, number_at<std::uint32_t>(frame, at) + 1);
              }
            }),
            "index");
}

TEST_F(Forgery, OfTheSymbols) {
  // A symbol of 8 bits may be any byte; one of 4 bits may not.
  const Bytes weights = gaussian_weights(Dtype::kF8E4M3, 40'000, 1);
  Bytes frame = encode_frame(Dtype::kF8E4M3, weights);
  put(frame, kSymbolsAt + 2, std::uint8_t{16});
  reseal(frame);
  EXPECT_EQ(rule_of(frame), "header");
}

/// A frame that ends where memory does.
class AtTheEnd {
 public:
  explicit AtTheEnd(std::span<const std::byte> frame) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    size_ = (frame.size() + page - 1) / page * page;
    void* const memory =
        ::mmap(nullptr, size_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    data_ = static_cast<std::byte*>(memory);
    EXPECT_EQ(::mprotect(data_ + size_, page, PROT_NONE), 0);
    size_ += page;
    frame_ = {data_ + size_ - page - frame.size(), frame.size()};
    std::ranges::copy(frame, frame_.begin());
  }
  ~AtTheEnd() { ::munmap(data_, size_); }
  AtTheEnd(const AtTheEnd&) = delete;
  AtTheEnd& operator=(const AtTheEnd&) = delete;

  std::span<const std::byte> frame() const { return frame_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::span<std::byte> frame_;
};

class ForgedCodes : public ::testing::TestWithParam<std::size_t> {
 protected:
  const TileKernels& kernels() const { return *all_kernels()[GetParam()]; }
  std::optional<FrameFault> decode(const Bytes& frame, std::size_t size_bytes) const {
    const AtTheEnd placed(frame);
    Bytes out(size_bytes);
    const FrameView view = parsed(placed.frame());
    const auto fault = decode_frame(view, out, kernels());
    expect_verified_alike(view, fault);
    return fault;
  }
  // Devices decode what is verified, and look at nothing.
  void expect_verified_alike(const FrameView& view, const std::optional<FrameFault>& fault) const {
    const auto found = verify_frame(view, kernels());
    ASSERT_EQ(found.has_value(), fault.has_value());
    if (fault) {
      EXPECT_EQ(found->rule, fault->rule);
    }
  }
};

TEST_P(ForgedCodes, WholeFramesEndWhereMemoryDoes) {
  for (const Dtype dtype : kFloats) {
    const Bytes weights = gaussian_weights(dtype, 40'000, usual_sigma(dtype));
    EXPECT_FALSE(decode(encode_frame(dtype, weights), weights.size()));
  }
}

TEST_P(ForgedCodes, MoreThanTheCountsAllow) {
  const Bytes weights = gaussian_weights(Dtype::kBf16, kChunkElements, 0.02);
  Bytes frame = encode_frame(Dtype::kBf16, weights);
  // Every element goes to the second level, whose plane would end behind the frame; there the codes
  // are names, or lead on.
  const auto first = frame.begin() + (parsed(frame).chunk(0).data() - frame.data()) + 8192;
  const auto lower = first + 2048;
  std::fill(first, lower, std::byte{0xff});
  for (const std::byte codes : {std::byte{0}, std::byte{0xff}}) {
    std::fill(lower, frame.end(), codes);
    reseal(frame);
    const auto fault = decode(frame, weights.size());
    ASSERT_TRUE(fault);
    EXPECT_EQ(fault->rule, FrameRule::kCodes);
  }
}

TEST_P(ForgedCodes, MoreLiteralsThanThereAre) {
  Bytes weights = gaussian_weights(Dtype::kBf16, kTileElements * 8, 0.02);
  Bytes frame = encode_frame(Dtype::kBf16, weights);
  const FrameView view = parsed(frame);
  const ChunkCounts counts = view.chunk_counts(0);
  const std::uint32_t levels = view.header().code.widths.count;
  const ChunkParts parts = chunk_parts(*view.header().layout, view.header().code.widths, 8, counts);
  // The last level, whose every code becomes the one of a literal.
  const std::uint32_t planes_begin = parts.literals - 3U * ((counts[levels - 2] + 7U) / 8);
  const auto chunk = view.chunk(0).data() - frame.data();
  ASSERT_GT(counts[levels - 2], counts[levels - 1]);
  std::fill_n(frame.begin() + chunk + planes_begin, parts.literals - planes_begin, std::byte{0xff});
  reseal(frame);
  const auto fault = decode(frame, weights.size());
  ASSERT_TRUE(fault);
  EXPECT_EQ(fault->rule, FrameRule::kCodes);
}

TEST_P(ForgedCodes, FewerThanTheCountsSay) {
  const Bytes weights = gaussian_weights(Dtype::kBf16, kTileElements * 8, 0.02);
  Bytes frame = encode_frame(Dtype::kBf16, weights);
  const auto chunk = static_cast<std::size_t>(parsed(frame).chunk(0).data() - frame.data());
  put(frame, chunk + 8192, std::uint64_t{0});
  reseal(frame);
  const auto fault = decode(frame, weights.size());
  ASSERT_TRUE(fault);
  EXPECT_EQ(fault->rule, FrameRule::kCodes);
}

TEST_P(ForgedCodes, RandomChangesWithRightChecksums) {
  std::mt19937_64 random(9);
  for (const Dtype dtype : kFloats) {
    const Bytes weights = gaussian_weights(dtype, 20'000, usual_sigma(dtype));
    const Bytes sound = encode_frame(dtype, weights);
    int decoded = 0;
    for (int i = 0; i < 400; ++i) {
      Bytes frame = sound;
      for (std::uint64_t change = 0; change <= random() % 3; ++change) {
        const std::size_t at = random() % (i % 2 == 0 ? 160 : frame.size());
        frame[at] = static_cast<std::byte>(random());
      }
      reseal(frame);
      const AtTheEnd placed(frame);
      const auto view = FrameView::parse(placed.frame());
      if (std::holds_alternative<FrameFault>(view)) continue;
      Bytes out(std::get<FrameView>(view).header().decoded_bytes);
      const auto fault = decode_frame(std::get<FrameView>(view), out, kernels());
      expect_verified_alike(std::get<FrameView>(view), fault);
      if (!fault) ++decoded;
    }
    // What an attacker wrote with care is a frame like any other.
    EXPECT_GT(decoded, 20);
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, ForgedCodes,
                         ::testing::Range(std::size_t{0}, all_kernels().size()),
                         [](const auto& suite) {
                           return std::string(all_kernels()[suite.param]->name());
                         });

}  // namespace
}  // namespace tensorstream

// A packed file read here and there: every byte is that of the original, or there is an error.
#include "store/packed_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "codec/frame_decoder.h"
#include "packed_files.h"
#include "platform/page_cache.h"
#include "platform/temporary_folder.h"
#include "store/checkpoint.h"
#include "tensorstream/error.h"

namespace tensorstream::testing {
namespace {

using ::testing::HasSubstr;

/// A file of all kinds, plain and packed.
class PackedFileTest : public ::testing::Test {
 protected:
  PackedFileTest() {
    folder_.write("src/m.safetensors", original_);
    pack_checkpoint(folder_.path("src/m.safetensors"), folder_.path("p"), kTwoThreads, {});
    tensors_ = parse_header(
                   "m", read_header_text(File::open_for_reading(folder_.path("src/m.safetensors"))))
                   .tensors;
  }

  std::string path() const { return folder_.path("p/packed-m.safetensors"); }
  const StoredTensor& tensor(const std::string& name) const {
    return *std::ranges::find(tensors_, name, &StoredTensor::name);
  }
  std::string truth(std::uint64_t offset, std::uint64_t size) const {
    return original_.substr(offset, size);
  }
  void write(const std::string& bytes) const { folder_.write("p/packed-m.safetensors", bytes); }

  const TemporaryFolder folder_;
  const std::string original_ = mixed_file();
  std::vector<StoredTensor> tensors_;
};

std::string read(const PackedFile& file, std::uint64_t offset, std::uint64_t size) {
  std::string out(size, '\0');
  file.read(offset, std::as_writable_bytes(std::span(out)));
  return out;
}

TEST_F(PackedFileTest, ReadsWhatTheOriginalHolds) {
  const PackedFile file(path());
  EXPECT_EQ(file.path(), path());
  ASSERT_EQ(file.size_bytes(), original_.size());
  const std::uint64_t begin = tensors_.front().offset_bytes;
  const std::uint64_t end = original_.size();
  EXPECT_TRUE(read(file, begin, end - begin) == truth(begin, end - begin)) << "all of it";
  std::mt19937_64 random(3);
  for (int i = 0; i < 400; ++i) {
    const std::uint64_t at = begin + random() % (end - begin);
    const std::uint64_t most = std::uint64_t{1} << (random() % 23);
    const std::uint64_t size = std::min(end - at, random() % most);
    EXPECT_TRUE(read(file, at, size) == truth(at, size)) << size << " from " << at;
  }
  for (const StoredTensor& one : tensors_) {
    EXPECT_TRUE(read(file, one.offset_bytes, one.size_bytes) ==
                truth(one.offset_bytes, one.size_bytes))
        << one.name;
  }
}

TEST_F(PackedFileTest, ReadsForManyThreads) {
  const PackedFile file(path());
  const StoredTensor& big = tensor("big");
  std::vector<std::jthread> threads;
  for (std::uint64_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (std::uint64_t i = 0; i < 10; ++i) {
        const std::uint64_t at = big.offset_bytes + thread * 300'000 + i * 100'003;
        EXPECT_TRUE(read(file, at, 200'000) == truth(at, 200'000)) << at;
      }
    });
  }
}

TEST_F(PackedFileTest, RefusesWhatNoTensorHas) {
  const PackedFile file(path());
  const std::uint64_t begin = tensors_.front().offset_bytes;
  for (const auto& [at, size] : {std::pair{std::uint64_t{0}, std::uint64_t{8}},
                                 {begin - 1, 2},
                                 {original_.size() - 1, 2},
                                 {original_.size(), 1},
                                 {~std::uint64_t{0}, 1}}) {
    EXPECT_THROW(read(file, at, size), IoError) << at;
  }
  EXPECT_EQ(read(file, original_.size(), 0), "");
}

TEST_F(PackedFileTest, GivesFramesAsTheyAre) {
  const PackedFile file(path());
  const StoredTensor& big = tensor("big");
  std::string frame(frame_bound(kFrameBytes), '\0');
  const auto bytes = std::as_writable_bytes(std::span(frame));
  for (std::uint64_t at = 0; at < big.size_bytes; at += kPartBytes) {
    const std::uint64_t size = std::min(kPartBytes, big.size_bytes - at);
    const std::uint64_t stored = file.read_frame(big.offset_bytes + at, size, bytes);
    ASSERT_GT(stored, 0U);
    EXPECT_LT(stored, size);
    const auto parsed = FrameView::parse(bytes.first(stored));
    ASSERT_TRUE(std::holds_alternative<FrameView>(parsed));
    std::string decoded(size, '\0');
    EXPECT_FALSE(
        decode_frame(std::get<FrameView>(parsed), std::as_writable_bytes(std::span(decoded))));
    EXPECT_TRUE(decoded == truth(big.offset_bytes + at, size)) << at;
  }
  EXPECT_EQ(file.read_frame(big.offset_bytes + 2, kPartBytes, bytes), 0U) << "no frame begins here";
  EXPECT_EQ(file.read_frame(big.offset_bytes, 4096, bytes), 0U) << "its frame holds more";
  EXPECT_EQ(file.read_frame(tensor("noise").offset_bytes, 140'000, bytes), 0U) << "not encoded";
  EXPECT_EQ(file.read_frame(0, 8, bytes), 0U) << "no tensor";
}

TEST_F(PackedFileTest, DecodesWhatOthersReadOfIt) {
  const PackedFile file(path());
  const std::string stored = read_file(path());
  constexpr std::uint64_t kMost = 5'000'000;
  for (const StoredTensor& one : tensors_) {
    for (std::uint64_t done = 0; done < one.size_bytes;) {
      const auto span = file.span_at(one.offset_bytes + done, one.size_bytes - done, kMost);
      ASSERT_TRUE(span) << one.name;
      EXPECT_LE(span->size_bytes, kMost);
      std::string out(span->decoded_bytes, '\0');
      file.decode(*span,
                  std::as_bytes(std::span(stored)).subspan(span->offset_bytes, span->size_bytes),
                  std::as_writable_bytes(std::span(out)));
      EXPECT_TRUE(out == truth(one.offset_bytes + done, out.size())) << one.name;
      EXPECT_GE(file.part_end(one.offset_bytes + done), one.offset_bytes + done);
      done += span->decoded_bytes;
    }
  }
  const StoredTensor& big = tensor("big");
  EXPECT_EQ(file.span_at(big.offset_bytes, big.size_bytes, kMost)->count, 2U);
  EXPECT_EQ(file.span_at(big.offset_bytes, kPartBytes, kMost)->count, 1U);
  EXPECT_EQ(file.part_end(big.offset_bytes + 5), big.offset_bytes + kPartBytes);
  EXPECT_FALSE(file.span_at(big.offset_bytes + 1, big.size_bytes - 1, kMost)) << "no part begins";
  EXPECT_FALSE(file.span_at(big.offset_bytes, kPartBytes - 1, kMost)) << "no room for a part";
  EXPECT_FALSE(file.span_at(big.offset_bytes, kPartBytes, 1000)) << "no room for its frame";
  EXPECT_FALSE(file.span_at(0, kPartBytes, kMost)) << "no tensor";
  EXPECT_EQ(file.part_end(0), 0U);
}

TEST_F(PackedFileTest, DecodesNothingOfAFileThatChanged) {
  const PackedFile file(path());
  std::string stored = read_file(path());
  const StoredTensor& big = tensor("big");
  const auto span = file.span_at(big.offset_bytes, kPartBytes, kPartBytes);
  ASSERT_TRUE(span);
  std::string out(span->decoded_bytes, '\0');
  const auto decode = [&] {
    file.decode(*span,
                std::as_bytes(std::span(stored)).subspan(span->offset_bytes, span->size_bytes),
                std::as_writable_bytes(std::span(out)));
  };
  decode();
  stored[span->offset_bytes + span->size_bytes / 2] ^= 1;
  EXPECT_THROW(decode(), FormatError);
  stored[span->offset_bytes + span->size_bytes / 2] ^= 1;
  std::filesystem::last_write_time(path(), std::filesystem::file_time_type::min());
  EXPECT_THROW(decode(), IoError);
}

/// `stored` is what was read of the file; other bytes there stand for a disk's damage.
TEST_F(PackedFileTest, FilesInRamAreVerifiedOnceAndOthersEachTime) {
  const tensorstream::TemporaryFolder in_ram("/dev/shm/");
  for (const bool disk : {true, false}) {
    const std::string bytes = read_file(path());
    const PackedFile file(disk ? path() : in_ram.write_text("packed.safetensors", bytes));
    if (disk && lies_in_ram(file.file())) continue;  // the folder of tests may be in RAM
    const StoredTensor& big = tensor("big");
    const auto first = file.span_at(big.offset_bytes, kPartBytes, kPartBytes);
    const auto both = file.span_at(big.offset_bytes, 2 * kPartBytes, 2 * kPartBytes);
    ASSERT_TRUE(first && both && both->count == 2);
    std::string damaged = bytes;
    damaged[first->offset_bytes + first->size_bytes / 2] ^= 1;
    const auto verify = [&](const PackedSpan& span, const std::string& read) {
      const auto stored = std::as_bytes(std::span(read));
      file.verify(span, stored.subspan(span.offset_bytes, span.size_bytes), nullptr);
    };
    EXPECT_THROW(verify(*first, damaged), FormatError);
    verify(*first, bytes);
    EXPECT_THROW(verify(*both, damaged), FormatError) << "one of them is new";
    if (disk) {
      EXPECT_THROW(verify(*first, damaged), FormatError);
    } else {
      verify(*first, damaged);
    }
    std::filesystem::last_write_time(file.path(), std::filesystem::file_time_type::min());
    EXPECT_THROW(verify(*first, bytes), IoError);
  }
}

/// Other bytes in the place of those that were packed are no damage: the advice is another.
TEST_F(PackedFileTest, WhatIsWrittenOverItIsAChangeAndNoDamage) {
  const StoredTensor& big = tensor("big");
  const PackedFile fresh(path());  // which has not looked for a frame yet
  const PackedFile known(path());
  const auto span = known.span_at(big.offset_bytes, kPartBytes, kPartBytes);
  ASSERT_TRUE(span);
  std::string other = read_file(path());
  for (std::size_t i = span->offset_bytes; i < other.size(); ++i) other[i] ^= 0x55;
  std::ofstream(path(), std::ios::binary) << other;
  std::string out(kPartBytes, '\0');
  const auto bytes = std::as_writable_bytes(std::span(out));
  const auto stored = std::as_bytes(std::span(other)).subspan(span->offset_bytes, span->size_bytes);
  EXPECT_THROW(fresh.read(big.offset_bytes, bytes), IoError);
  EXPECT_THROW(known.read(big.offset_bytes, bytes), IoError);
  EXPECT_THROW(known.decode(*span, stored, bytes), IoError);
  EXPECT_THROW(known.verify(*span, stored, nullptr), IoError);
}

TEST_F(PackedFileTest, IsACheckpointOfTheTensorsThatWerePacked) {
  for (const std::string& where : {folder_.path("p"), path()}) {
    const Checkpoint checkpoint = Checkpoint::open(where);
    EXPECT_TRUE(checkpoint.packed());
    EXPECT_EQ(checkpoint.files(), std::vector{path()});
    ASSERT_EQ(checkpoint.tensors().size(), tensors_.size());
    for (const StoredTensor& one : tensors_) {
      const StoredTensor& found = checkpoint.tensors().at(one.name).stored;
      EXPECT_EQ(found.offset_bytes, one.offset_bytes);
      EXPECT_EQ(found.size_bytes, one.size_bytes);
      EXPECT_EQ(found.shape, one.shape);
      EXPECT_EQ(found.dtype, one.dtype);
    }
  }
  EXPECT_FALSE(Checkpoint::open(folder_.path("src")).packed());
  EXPECT_THAT([&] { pack_checkpoint(folder_.path("p"), folder_.path("again"), kTwoThreads, {}); },
              ::testing::ThrowsMessage<UnsupportedError>(HasSubstr("is packed already")));
}

/// The tensor that holds the byte of the packed file; null for headers and padding.
const PackedTensor* holder_of(const PackedHeader& header, std::uint64_t at) {
  for (const PackedTensor& tensor : header.tensors) {
    const PackedExtent& extent = tensor.stored;
    if (at >= extent.offset_bytes && at < extent.offset_bytes + extent.size_bytes) return &tensor;
  }
  return nullptr;
}

/// Whether `work` gives the truth; nothing where it names the tensor as damaged.
template <typename Work>
std::optional<bool> outcome(const Work& work, const std::string& path, const std::string& tensor) {
  try {
    return work();
  } catch (const FormatError& error) {
    EXPECT_EQ(error.path(), path);
    EXPECT_EQ(error.tensor(), tensor);
    EXPECT_THAT(error.rule(), ::testing::AnyOf(HasSubstr("chunk"), HasSubstr("frame")));
    return std::nullopt;
  }
}

TEST_F(PackedFileTest, EveryFlippedBitIsNamedByWhatReadsIt) {
  const std::string good = read_file(path());
  const PackedHeader header = read_packed_header(File::open_for_reading(path()));
  std::mt19937_64 random(6);
  std::string frame(frame_bound(kFrameBytes), '\0');
  int found = 0;
  for (int i = 0; i < 300; ++i) {
    // Every third in what frames begin with: lengths, checksums and counts.
    const bool at_begin = i % 3 == 0;
    const PackedExtent& big = header.tensors.at(1).stored;
    const std::uint64_t at = at_begin ? big.offset_bytes + random() % 3000 : random() % good.size();
    const PackedTensor* const holder = holder_of(header, at);
    if (holder == nullptr) continue;
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (random() % 8)));
    write(bad);
    const PackedFile file(path());
    const StoredTensor& hit = holder->original;
    const auto whole = outcome(
        [&] {
          return read(file, hit.offset_bytes, hit.size_bytes) ==
                 truth(hit.offset_bytes, hit.size_bytes);
        },
        path(), hit.name);
    EXPECT_TRUE(whole.value_or(true)) << "byte " << at;
    // The zeros behind its frames are part of no tensor.
    if (!whole) ++found;
    for (std::uint64_t from = 0; from < hit.size_bytes; from += 700'001) {
      const std::uint64_t size = std::min<std::uint64_t>(5000, hit.size_bytes - from);
      const auto some = outcome(
          [&] {
            return read(file, hit.offset_bytes + from, size) ==
                   truth(hit.offset_bytes + from, size);
          },
          path(), hit.name);
      EXPECT_TRUE(some.value_or(true)) << "byte " << at << ", read from " << from;
    }
    bool frames_refused = !holder->encoded || whole;
    for (std::uint64_t from = 0; from < hit.size_bytes; from += kPartBytes) {
      const std::uint64_t size = std::min(kPartBytes, hit.size_bytes - from);
      const auto taken = outcome(
          [&] {
            file.read_frame(hit.offset_bytes + from, size,
                            std::as_writable_bytes(std::span(frame)));
            return true;
          },
          path(), hit.name);
      frames_refused = frames_refused || !taken;
    }
    EXPECT_TRUE(frames_refused) << "byte " << at;
    for (const StoredTensor& other : tensors_) {
      if (other.name == hit.name || i % 20 != 0) continue;
      EXPECT_TRUE(read(file, other.offset_bytes, other.size_bytes) ==
                  truth(other.offset_bytes, other.size_bytes))
          << other.name;
    }
  }
  EXPECT_GT(found, 250);
}

TEST_F(PackedFileTest, AFileThatIsWrittenToIsGivenUp) {
  const PackedFile file(path());
  const StoredTensor& big = tensor("big");
  EXPECT_EQ(read(file, big.offset_bytes, 100), truth(big.offset_bytes, 100));
  // The same bytes: only the time tells.
  std::filesystem::last_write_time(
      path(), std::filesystem::last_write_time(path()) + std::chrono::seconds(3));
  EXPECT_THROW(read(file, big.offset_bytes, 100), IoError);
  std::string frame(frame_bound(kFrameBytes), '\0');
  EXPECT_THROW(
      file.read_frame(big.offset_bytes, kPartBytes, std::as_writable_bytes(std::span(frame))),
      IoError);
}

}  // namespace
}  // namespace tensorstream::testing

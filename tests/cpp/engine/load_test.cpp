// A Load: files that are read past the page cache, by reads that go on by themselves, and memory
// that is copied.
#include "engine/load.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <thread>
#include <vector>

#include "base/units.h"
#include "device/host_device.h"
#include "io/file_opener.h"
#include "made_bytes/weights.h"
#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

class LoadFromDisk : public ::testing::Test {
 protected:
  /// A tensor and a half, at places where no disk block begins.
  void add_all(Load& load, std::uint64_t piece_bytes) {
    std::byte* target = target_.data();
    for (const auto& [offset, size] : kParts) {
      load.add({reader_, offset, size}, target, piece_bytes);
      target += size;
    }
  }

  bool is_whole() const {
    const std::byte* target = target_.data();
    for (const auto& [offset, size] : kParts) {
      if (!std::equal(target, target + size, bytes_.data() + offset)) return false;
      target += size;
    }
    return true;
  }

  static constexpr std::pair<std::uint64_t, std::uint64_t> kParts[] = {{1000, 9_MiB + 24},
                                                                       {13_MiB + 8, 3_MiB}};
  const TemporaryFolder folder_;
  const std::vector<std::byte> bytes_ = patterned_bytes(17_MiB);
  const std::string path_ = folder_.write("a.bin", bytes_);
  const std::shared_ptr<Reader> reader_ = open_file_reader(path_, FileBackend::kDirect);
  std::vector<std::byte> target_ = std::vector<std::byte>(12_MiB + 24);
};

TEST_F(LoadFromDisk, IsWholeOnceEveryThreadThatReadsHasReturned) {
  for (int threads = 1; threads <= 3; ++threads) {
    std::ranges::fill(target_, std::byte{0xA5});
    Load load(0, Load::Reads::kInPlace);
    add_all(load, 16_MiB);
    EXPECT_TRUE(load.is_large());
    {
      std::vector<std::jthread> others;
      for (int i = 1; i < threads; ++i) others.emplace_back([&] { load.read(); });
      load.read();
    }
    EXPECT_EQ(load.error(), nullptr);
    EXPECT_TRUE(is_whole()) << threads;
  }
}

TEST_F(LoadFromDisk, GoesThroughStagingWhole) {
  const auto device = create_host_device({});
  const auto stream = device->create_stream();
  for (const std::uint64_t piece : {4_KiB, 1_MiB, 16_MiB}) {
    std::ranges::fill(target_, std::byte{0xA5});
    StagingRing ring(*device, {.piece_bytes = piece, .pieces = 2});
    Load load(0, Load::Reads::kStaged);
    add_all(load, 16_MiB);
    StagedReader(ring).send(load, *stream, {});
    stream->synchronize();
    EXPECT_EQ(load.error(), nullptr);
    EXPECT_TRUE(is_whole()) << piece;
  }
}

TEST_F(LoadFromDisk, AFileThatEndsEarlyIsItsError) {
  std::filesystem::resize_file(path_, 5_MiB);
  Load load(0, Load::Reads::kInPlace);
  add_all(load, 16_MiB);
  load.read();
  ASSERT_NE(load.error(), nullptr);
  EXPECT_THROW(std::rethrow_exception(load.error()), IoError);
}

/// Memory that a device copies from, in registrations of `registered_bytes`.
class PinnedReader final : public Reader {
 public:
  PinnedReader(std::span<const std::byte> bytes, std::uint64_t registered_bytes)
      : bytes_(bytes), registered_bytes_(registered_bytes) {}

  const std::string& name() const noexcept override { return name_; }
  Tier tier() const noexcept override { return Tier::kRam; }
  std::uint64_t size_bytes() const noexcept override { return bytes_.size(); }
  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    std::ranges::copy(bytes_.subspan(offset_bytes, out.size()), out.begin());
  }
  const std::byte* address(std::uint64_t offset_bytes) const noexcept override {
    return bytes_.data() + offset_bytes;
  }
  std::uint64_t pinned_end(std::uint64_t offset_bytes) const noexcept override {
    return std::min((offset_bytes / registered_bytes_ + 1) * registered_bytes_, size_bytes());
  }

 private:
  const std::string name_ = "pinned";
  const std::span<const std::byte> bytes_;
  const std::uint64_t registered_bytes_;
};

class LoadFromPinnedMemory : public ::testing::Test {
 protected:
  std::shared_ptr<Reader> reader(std::uint64_t registered_bytes = 1_MiB) const {
    return std::make_shared<PinnedReader>(bytes_, registered_bytes);
  }
  /// Where each copy begins in the source, and ends there.
  using Ranges = std::vector<std::pair<std::uint64_t, std::uint64_t>>;
  Ranges ranges(const Load& load) const {
    Ranges result;
    for (const Load::Copy& copy : load.copies()) {
      const auto begin = static_cast<std::uint64_t>(copy.source - bytes_.data());
      result.emplace_back(begin, begin + copy.target.size());
    }
    return result;
  }
  /// Adds extents, given as offset and size, each to where it lies in the source.
  void add(Load& load, const std::shared_ptr<Reader>& reader, const Ranges& extents,
           std::uint64_t piece_bytes = 1_MiB) {
    for (const auto& [offset, size] : extents) {
      load.add({reader, offset, size}, target_.data() + offset, piece_bytes);
    }
  }

  const std::vector<std::byte> bytes_ = patterned_bytes(64_KiB);
  std::vector<std::byte> target_ = std::vector<std::byte>(64_KiB);
};

TEST_F(LoadFromPinnedMemory, IsOneCopyOfWhatLiesAlikeInSourceAndPlace) {
  Load load(0, Load::Reads::kStaged);
  add(load, reader(), {{0, 1000}, {1536, 512}, {2560, 3000}});
  EXPECT_EQ(ranges(load), (Ranges{{0, 5560}}));
  EXPECT_EQ(load.copies()[0].target.data(), target_.data());
  EXPECT_EQ(load.ram_bytes(), 4512) << "what is between is of no tensor";
}

TEST_F(LoadFromPinnedMemory, CutsWhatIsOneIntoPieces) {
  Load load(0, Load::Reads::kStaged);
  add(load, reader(), {{0, 5000}, {5120, 5000}, {10240, 100}}, 4096);
  EXPECT_EQ(ranges(load), (Ranges{{0, 4096}, {4096, 8192}, {8192, 10340}}));
}

TEST_F(LoadFromPinnedMemory, LeavesAGapThatWouldFillThePiece) {
  Load load(0, Load::Reads::kStaged);
  add(load, reader(), {{0, 4000}, {4096, 100}}, 4096);
  EXPECT_EQ(ranges(load), (Ranges{{0, 4000}, {4096, 4196}}));
}

TEST_F(LoadFromPinnedMemory, NoCopyReachesFromOneRegistrationIntoAnother) {
  Load load(0, Load::Reads::kStaged);
  add(load, reader(8192), {{0, 4000}, {4096, 6000}, {10240, 100}});
  EXPECT_EQ(ranges(load), (Ranges{{0, 8192}, {8192, 10340}}));
  Load apart(0, Load::Reads::kStaged);
  add(apart, reader(8192), {{4096, 4096}, {8192, 100}});
  EXPECT_EQ(ranges(apart), (Ranges{{4096, 8192}, {8192, 8292}}));
}

TEST_F(LoadFromPinnedMemory, JoinsNothingAcrossAnotherTensor) {
  Load load(0, Load::Reads::kStaged);  // one of a byte lies between them
  add(load, reader(), {{0, 449}, {1024, 100}});
  EXPECT_EQ(ranges(load), (Ranges{{0, 449}, {1024, 1124}}));
}

TEST_F(LoadFromPinnedMemory, JoinsNothingThatLiesElsewhereInThePlace) {
  const std::shared_ptr<Reader> source = reader();
  Load load(0, Load::Reads::kStaged);
  load.add({source, 0, 1000}, target_.data(), 1_MiB);
  load.add({source, 1024, 1000}, target_.data() + 4096, 1_MiB);
  load.add({source, 0, 1000}, target_.data() + 5120, 1_MiB);
  EXPECT_EQ(ranges(load), (Ranges{{0, 1000}, {1024, 2024}, {0, 1000}}));
}

TEST_F(LoadFromPinnedMemory, JoinsNothingOfTwoSources) {
  Load load(0, Load::Reads::kStaged);
  add(load, reader(), {{0, 1000}});
  add(load, reader(), {{1024, 1000}});
  EXPECT_EQ(ranges(load), (Ranges{{0, 1000}, {1024, 2024}}));
}

}  // namespace
}  // namespace tensorstream

// A Load whose files are read past the page cache, by reads that go on by themselves.
#include "engine/load.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <thread>
#include <vector>

#include "base/units.h"
#include "device/host_device.h"
#include "io/file_opener.h"
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

}  // namespace
}  // namespace tensorstream

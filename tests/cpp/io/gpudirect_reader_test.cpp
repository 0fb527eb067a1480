// Files that cuFile reads into device memory, by the fake driver's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/units.h"
#include "device/cuda_files.h"
#include "device/host_device.h"
#include "io/device_reads.h"
#include "io/file_opener.h"
#include "made_bytes/weights.h"
#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class Gpudirect : public ::testing::Test {
 protected:
  std::unique_ptr<Reader> open(const std::string& path) const {
    return FileOpener(FileBackend::kGpudirect, device_).open(path);
  }
  static std::vector<std::byte> read(Reader& reader, std::uint64_t offset, std::uint64_t size) {
    std::vector<std::byte> out(size);
    reader.read(offset, out);
    return out;
  }
  std::unique_ptr<Reader> open_to_device(const std::string& path) const {
    return std::make_unique<ByWayOfDevice>(device_, open(path));
  }

  static FakeCuda at_start() {
    const FakeCuda fake;
    fake.reset();
    return fake;
  }

  const FakeCuda fake_ = at_start();
  const TemporaryFolder folder_;
  const std::vector<std::byte> bytes_ = patterned_bytes(9_MiB + 321);
  const std::string path_ = folder_.write("a.bin", bytes_);
  std::shared_ptr<Device> device_ = reading_gpu();
};

TEST_F(Gpudirect, ReadsOfHostMemoryAreNoneOfCufile) {
  const auto reader = open(path_);
  EXPECT_TRUE(reader->reads_to_device());
  EXPECT_EQ(read(*reader, 0, bytes_.size()), bytes_);
  EXPECT_EQ(fake_.calls("cuFileRead"), 0);
  EXPECT_EQ(read(*open_to_device(path_), 0, bytes_.size()), bytes_);
  EXPECT_EQ(fake_.calls("cuFileRead"), 3);
}

TEST_F(Gpudirect, AReadIsWholeHoweverShortCufilesAre) {
  fake_.set("cufile_longest_read", 70'001);
  EXPECT_EQ(read(*open_to_device(path_), 5, 3_MiB),
            std::vector(bytes_.begin() + 5, bytes_.begin() + 5 + 3_MiB));
  EXPECT_GT(fake_.calls("cuFileRead"), 40);
}

TEST_F(Gpudirect, AnErrorOfTheSystemIsAnIoErrorWithItsPlace) {
  const auto reader = open_to_device(path_);
  fake_.fail("cuFileRead", 1, EIO);
  try {
    read(*reader, 1000, 500);
    FAIL() << "no error";
  } catch (const IoError& error) {
    EXPECT_EQ(error.error_number(), EIO);
    EXPECT_EQ(error.path(), path_);
    EXPECT_EQ(error.offset_bytes(), 1000U);
  }
  fake_.fail("cuFileRead", 1, EINTR);
  EXPECT_EQ(read(*reader, 0, bytes_.size()), bytes_);
}

TEST_F(Gpudirect, AnErrorOfCufileIsOneWithFileOffsetAndLength) {
  const auto reader = open_to_device(path_);
  fake_.fail("cuFileRead", 2, static_cast<int>(CufileResult::kIoError));
  try {
    read(*reader, 0, bytes_.size());
    FAIL() << "no error";
  } catch (const CufileError& error) {
    EXPECT_EQ(error.read().result, 5044);
    EXPECT_EQ(error.read().path, path_);
    EXPECT_EQ(error.read().offset_bytes % 4_MiB, 0U);
    EXPECT_THAT(error.what(), AllOf(HasSubstr(path_), HasSubstr("5044 (the read failed)")));
  }
  EXPECT_EQ(read(*reader, 0, bytes_.size()), bytes_);
}

TEST_F(Gpudirect, AFileThatChangesIsAnError) {
  const auto reader = open_to_device(path_);
  std::filesystem::resize_file(path_, 5_MiB);
  EXPECT_THROW(read(*reader, 0, bytes_.size()), IoError);
  EXPECT_THROW(read(*reader, 0, 1_MiB), IoError);
}

TEST_F(Gpudirect, WhatCufileRefusesIsUnsupportedWithTheReason) {
  fake_.fail("cuFileHandleRegister", 1, static_cast<int>(CufileResult::kInternalError));
  try {
    open(path_);
    FAIL() << "opens";
  } catch (const UnsupportedError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr(path_), HasSubstr("5030 (internal error)")));
  }
  EXPECT_EQ(fake_.get("files"), 0);
  EXPECT_NO_THROW(open(path_));
}

TEST_F(Gpudirect, FilesAreToldOfAndForgotten) {
  auto reader = open(path_);
  EXPECT_EQ(fake_.get("files"), 1);
  const auto memory = device_->allocate(bytes_.size());
  PendingRead pending = reader->begin_device_read(0, {memory->data(), bytes_.size()});
  reader.reset();  // the read that is under way has the file
  EXPECT_EQ(fake_.get("files"), 1);
  pending.wait();
  EXPECT_EQ(fake_.get("files"), 0);
}

TEST_F(Gpudirect, ALostContextIsAnError) {
  const auto reader = open(path_);
  const auto memory = device_->allocate(100);
  fake_.set("lost", static_cast<int>(CudaResult::kIllegalAddress));
  try {
    reader->begin_device_read(0, {memory->data(), 100}).wait();
    ADD_FAILURE() << "no error";
  } catch (const CufileError& error) {
    EXPECT_EQ(error.read().result, static_cast<int>(CufileResult::kCudaDriverError));
  }
  fake_.set("lost", 0);
}

TEST_F(Gpudirect, OtherReadersDoNotReachTheDevice) {
  const auto reader = open_file_reader(path_, FileBackend::kDirect);
  EXPECT_FALSE(reader->reads_to_device());
  EXPECT_THROW(reader->begin_device_read(0, {}), UnsupportedError);
}

TEST_F(Gpudirect, AProbeSaysHowOrWhyNot) {
  const ProbeResult compatible = probe(FileBackend::kGpudirect, device_);
  EXPECT_TRUE(compatible.is_usable);
  EXPECT_FALSE(compatible.is_peer_to_peer);
  EXPECT_THAT(compatible.reason,
              AllOf(HasSubstr("cuFile into device memory, 8 requests of 4.00 MiB at a time"),
                    HasSubstr("compatibility mode, as nvidia-fs is not loaded"),
                    HasSubstr("into host memory O_DIRECT")));
  fake_.set("cufile_nvidia_fs_version", 2);
  fake_.set("cufile_control_flags", 0);
  const ProbeResult peers = probe(FileBackend::kGpudirect, device_);
  EXPECT_TRUE(peers.is_usable && peers.is_peer_to_peer);
  fake_.fail("cuFileDriverOpen", 1, static_cast<int>(CufileResult::kPlatformNotSupported));
  const ProbeResult refused = probe(FileBackend::kGpudirect, device_);
  EXPECT_FALSE(refused.is_usable || refused.is_peer_to_peer);
  EXPECT_THAT(refused.reason, HasSubstr("5007 (this platform is not supported)"));
}

TEST_F(Gpudirect, AChoiceDoesNotOpenCufileWhereThereIsNoNvidiaFs) {
  EXPECT_EQ(probe_peer_to_peer(device_).reason, "nvidia-fs is not loaded");
  EXPECT_EQ(fake_.calls("cuFileDriverOpen"), 0);
  device_ = reading_gpu(folder_.path("."));
  EXPECT_FALSE(probe_peer_to_peer(device_).is_peer_to_peer);
  EXPECT_EQ(fake_.calls("cuFileDriverOpen"), 1);
  fake_.set("cufile_nvidia_fs_version", 2);
  fake_.set("cufile_control_flags", 0);
  EXPECT_TRUE(probe_peer_to_peer(device_).is_peer_to_peer);
}

TEST_F(Gpudirect, TheHostHasNoSuchMemory) {
  const std::shared_ptr<Device> host = create_host_device({});
  for (const auto& device : {host, std::shared_ptr<Device>()}) {
    for (const FileBackend backend : {FileBackend::kCuda, FileBackend::kGpudirect}) {
      const ProbeResult result = probe(backend, device);
      EXPECT_FALSE(result.is_usable);
      EXPECT_THAT(result.reason, HasSubstr("the device is cpu"));
      EXPECT_THROW(FileOpener(backend, device), UnsupportedError);
    }
  }
  EXPECT_EQ(probe_peer_to_peer(host).reason, "device cpu is no GPU");
  EXPECT_THROW(open_cuda_files(host), UnsupportedError);
}

TEST_F(Gpudirect, TheCudaBackendReadsPastThePageCacheForAGpu) {
  const FileOpener opener(FileBackend::kCuda, device_);
  EXPECT_THAT(opener.about(), AllOf(HasSubstr("O_DIRECT"), HasSubstr("into pinned memory")));
  const auto reader = opener.open(path_);
  EXPECT_FALSE(reader->reads_to_device());
  EXPECT_EQ(read(*reader, 0, bytes_.size()), bytes_);
}

}  // namespace
}  // namespace tensorstream

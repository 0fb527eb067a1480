// What CudaDevice does where the driver is absent or fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/units.h"
#include "device/cuda_device.h"
#include "device/gate.h"
#include "fake_cuda/fake_cuda.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class FakeCudaFailure : public ::testing::Test {
 protected:
  FakeCudaFailure() {
    fake_.reset();
    set_log_sink([this](LogLevel level, std::string_view text) {
      if (level == LogLevel::kError) errors_.emplace_back(text);
    });
  }
  ~FakeCudaFailure() override {
    set_log_sink({});
    fake_.reset();
  }

  static std::unique_ptr<Device> create(CudaDeviceOptions options = {}) {
    if (options.driver_library == kCudaDriverLibrary) options.driver_library = FakeCuda::path();
    return create_cuda_device(options);
  }
  /// What the error of a creation says.
  template <typename Expected>
  static std::string refusal(const CudaDeviceOptions& options = {}) {
    try {
      create(options);
    } catch (const Expected& error) {
      return error.what();
    }
    return "no such error";
  }

  const FakeCuda fake_;
  std::vector<std::string> errors_;
};

TEST_F(FakeCudaFailure, NoDriver) {
  EXPECT_THAT(refusal<UnsupportedError>({.driver_library = "libcuda-of-nobody.so.1"}),
              AllOf(HasSubstr("device cuda:0 cannot be used"), HasSubstr("no CUDA driver"),
                    HasSubstr("libcuda-of-nobody.so.1")));
}

TEST_F(FakeCudaFailure, ADriverWithoutAnEntry) {
  EXPECT_THAT(refusal<UnsupportedError>({.driver_library = FakeCuda::incomplete_path()}),
              HasSubstr("lacks cuInit"));
}

TEST_F(FakeCudaFailure, ADriverThatIsTooOld) {
  fake_.set("driver_version", 11040);
  EXPECT_THAT(refusal<UnsupportedError>(),
              AllOf(HasSubstr("11.4"), HasSubstr("12.0"), HasSubstr("update the driver")));
}

TEST_F(FakeCudaFailure, ADriverThatDoesNotStart) {
  fake_.set("init_result", static_cast<int>(CudaResult::kOperatingSystem));
  EXPECT_THAT(refusal<UnsupportedError>(), HasSubstr("CUDA_ERROR_OPERATING_SYSTEM"));
}

TEST_F(FakeCudaFailure, NoDevice) {
  fake_.set("devices", 0);
  EXPECT_THAT(refusal<UnsupportedError>(), HasSubstr("sees no device"));
  fake_.set("init_result", static_cast<int>(CudaResult::kNoDevice));
  EXPECT_THAT(refusal<UnsupportedError>(), HasSubstr("sees no device"));
}

TEST_F(FakeCudaFailure, AnIndexWithoutADevice) {
  EXPECT_THAT(refusal<ConfigError>({.index = 1}),
              HasSubstr("cuda:1 is not there: there is 1 device, cuda:0"));
  fake_.set("devices", 3);
  EXPECT_THAT(refusal<ConfigError>({.index = 3}),
              HasSubstr("cuda:3 is not there: there are 3 devices, cuda:0 to cuda:2"));
  EXPECT_THAT(refusal<ConfigError>({.index = -1}), HasSubstr("cuda:-1 is not there"));
  EXPECT_EQ(create({.index = 2})->name(), "cuda:2");
}

TEST_F(FakeCudaFailure, AFailedCallIsACudaErrorWithItsFields) {
  const auto device = create();
  const auto stream = device->create_stream();
  fake_.fail("cuStreamSynchronize", 1, CudaResult::kIllegalAddress);
  try {
    stream->synchronize();
    FAIL();
  } catch (const CudaError& error) {
    EXPECT_EQ(error.call(), "cuStreamSynchronize");
    EXPECT_EQ(error.result(), 700);
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("cuda:0 (Fake GPU 0"), HasSubstr("CUDA_ERROR_ILLEGAL_ADDRESS (700"),
                      HasSubstr("restart the process")));
    EXPECT_THAT(error.where().file_name(), HasSubstr("cuda_stream.cpp"));
  }
}

const KernelSource kNothing = {"nothing.cu", "__global__ void ts_nothing(char*) {}", {}};

/// Everything that a device does, once. The names of the objects are the order in which they go.
void use_everything() {
  const auto device = create_cuda_device({.checking = Checking::kOn,
                                          .longest_delay_us = 20,
                                          .driver_library = FakeCuda::path(),
                                          .compiler = FakeCuda::compiler()});
  const CudaKernel kernel = cuda_kernel(*device, kNothing, "ts_nothing");
  std::vector<std::byte> bytes = numbered_bytes(3000, 1);
  std::vector<std::byte> target(bytes.size());
  const auto memory = device->allocate(bytes.size());
  const auto large = device->allocate(2_MiB);
  const auto registration = device->try_register_host(bytes);
  const auto event = device->create_event();
  const auto stream = device->create_stream();
  Stream& caller = device->stream_of(kCudaPerThreadStream);
  static_cast<void>(device->free_bytes());
  for (int round = 0; round < 3; ++round) {
    stream->copy_to_device(memory->data(), bytes.data(), bytes.size());
    stream->run([] {});
    kernel.launch(*stream, {}, memory->data());
    stream->record(*event);
    caller.wait(*event);
    caller.copy_to_host(target.data(), memory->data(), target.size());
    caller.record(*event);
    static_cast<void>(event->complete());
    event->synchronize();
    stream->poison(memory->data(), bytes.size());
    stream->synchronize();
  }
  EXPECT_FALSE(caller.is_capturing());
  caller.synchronize();
  EXPECT_TRUE(target == bytes);
}

const std::vector<std::string>& entries() {
  static const std::vector<std::string> kEntries = {
#define TS_NAME_OF_ENTRY(name, parameters) #name,
      TS_CUDA_DRIVER_ENTRIES(TS_NAME_OF_ENTRY)
#undef TS_NAME_OF_ENTRY
  };
  return kEntries;
}

TEST_F(FakeCudaFailure, UsingEverythingCallsEveryEntryAndLeavesNothing) {
  use_everything();
  for (const std::string& entry : entries()) {
    if (entry.starts_with("cuGetError")) continue;
    EXPECT_GT(fake_.calls(entry.c_str()), 0) << entry;
  }
  EXPECT_EQ(fake_.get("leaked"), 0);
  EXPECT_EQ(fake_.held(), 0);
  EXPECT_THAT(errors_, IsEmpty());
}

/// Each call of each entry fails once: there is an error of the library or a logged one, and what
/// the driver holds afterwards is what a failed release left.
TEST_F(FakeCudaFailure, EachCallMayFail) {
  use_everything();
  std::vector<long long> calls;
  for (const std::string& entry : entries()) calls.push_back(fake_.calls(entry.c_str()));
  for (std::size_t i = 0; i < entries().size(); ++i) {
    const std::string& entry = entries()[i];
    // Of many calls of one entry the first and the last few differ.
    for (long long nth = 1; nth <= calls[i]; nth += nth > 12 && nth < calls[i] - 12 ? 7 : 1) {
      SCOPED_TRACE(entry + " call " + std::to_string(nth));
      fake_.reset();
      errors_.clear();
      fake_.fail(entry.c_str(), static_cast<int>(nth), CudaResult::kInvalidContext);
      bool raised = false;
      try {
        use_everything();
      } catch (const Error& error) {
        raised = true;
        EXPECT_NE(std::string(error.what()), "");
      }
      EXPECT_TRUE(raised || !errors_.empty());
      if (errors_.empty()) {
        EXPECT_EQ(fake_.get("leaked"), 0);
        EXPECT_EQ(fake_.held(), 0);
      }
      EXPECT_EQ(fake_.get("context_depth"), entry == "cuCtxPopCurrent_v2" ? 1 : 0);
    }
  }
}

TEST_F(FakeCudaFailure, AFailedReleaseIsLoggedAndTheRestIsReleased) {
  fake_.fail("cuEventDestroy_v2", 1, CudaResult::kInvalidHandle);
  use_everything();
  EXPECT_THAT(errors_, ElementsAre(AllOf(HasSubstr("cuEventDestroy_v2"),
                                         HasSubstr("CUDA_ERROR_INVALID_HANDLE"))));
  EXPECT_EQ(fake_.get("leaked"), 1);
  EXPECT_EQ(fake_.held(), 0);
}

TEST_F(FakeCudaFailure, ALostContextIsLoggedOnce) {
  {
    const auto device = create();
    const auto memory = device->allocate(100);
    const auto event = device->create_event();
    const auto stream = device->create_stream();
    fake_.set("lost", static_cast<int>(CudaResult::kLaunchFailed));
    EXPECT_THROW(stream->synchronize(), CudaError);
    EXPECT_THROW(static_cast<void>(event->complete()), CudaError);
    EXPECT_THROW(device->allocate(100), CudaError);
  }
  EXPECT_THAT(errors_, ElementsAre(HasSubstr("restart the process")));
}

TEST_F(FakeCudaFailure, ADriverThatShutDownFirstIsNoError) {
  {
    const auto device = create();
    const auto memory = device->allocate(100);
    const auto event = device->create_event();
    const auto stream = device->create_stream();
    fake_.set("lost", static_cast<int>(CudaResult::kDeinitialized));
  }
  EXPECT_THAT(errors_, IsEmpty());
}

}  // namespace
}  // namespace tensorstream

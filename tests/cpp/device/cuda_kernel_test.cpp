// How kernels come to a GPU's context, and where there is none.
#include "device/cuda_kernel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "device/cuda_device.h"
#include "device/host_device.h"
#include "fake_cuda/fake_cuda.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const KernelSource kSource = {"nothing.cu", "__global__ void ts_nothing(char*) {}", {}};

class CudaKernelTest : public ::testing::Test {
 protected:
  CudaKernelTest() { fake_.reset(); }
  ~CudaKernelTest() override {
    EXPECT_EQ(fake_.get("leaked"), 0);
    EXPECT_EQ(fake_.held(), 0);
  }

  static std::unique_ptr<Device> create(const NvrtcPlaces& compiler = FakeCuda::compiler()) {
    return create_cuda_device({.driver_library = FakeCuda::path(), .compiler = compiler});
  }
  /// What the error says that the kernel's creation raises.
  template <typename Expected>
  static std::string refusal(Device& device, const KernelSource& source, const char* function) {
    try {
      cuda_kernel(device, source, function);
    } catch (const Expected& error) {
      return error.what();
    }
    return "no such error";
  }

  const FakeCuda fake_;
};

TEST_F(CudaKernelTest, AModuleIsLoadedOnceADeviceAndUnloadedWithIt) {
  {
    const auto device = create();
    for (int i = 0; i < 3; ++i) cuda_kernel(*device, kSource, "ts_nothing");
    EXPECT_EQ(fake_.calls("cuModuleLoadData"), 1);
    KernelSource other = kSource;
    other.options = {"-DWIDTH=2"};
    cuda_kernel(*device, other, "ts_nothing");
    EXPECT_EQ(fake_.get("modules"), 2);
  }
  EXPECT_EQ(fake_.calls("cuModuleUnload"), 2);
}

TEST_F(CudaKernelTest, WithoutACompilerThereIsAReason) {
  const auto device = create({"/nowhere/libnvrtc.so.13", {}});
  EXPECT_THAT(refusal<UnsupportedError>(*device, kSource, "ts_nothing"),
              AllOf(HasSubstr("cuda:0 (Fake GPU 0"), HasSubstr("nothing.cu cannot be compiled"),
                    HasSubstr("install the PyPI package nvidia-cuda-nvrtc")));
}

TEST_F(CudaKernelTest, AHostRunsNone) {
  EXPECT_THAT(refusal<UnsupportedError>(*create_host_device(), kSource, "ts_nothing"),
              HasSubstr("device cpu runs no kernels"));
}

TEST_F(CudaKernelTest, WhatCompilerAndDriverSayIsToldAndTheNextTryIsAnew) {
  const auto device = create();
  EXPECT_THAT(refusal<CudaError>(*device, {"broken.cu", "no kernel", {}}, "ts_nothing"),
              HasSubstr("the fake compiler found no kernel"));
  fake_.fail("cuModuleLoadData", 1, CudaResult::kNoBinaryForGpu);
  EXPECT_THAT(refusal<CudaError>(*device, kSource, "ts_nothing"),
              AllOf(HasSubstr("cuModuleLoadData"), HasSubstr("update the NVIDIA driver")));
  EXPECT_THAT(refusal<CudaError>(*device, kSource, "ts_else"), HasSubstr("CUDA_ERROR_NOT_FOUND"));
  cuda_kernel(*device, kSource, "ts_nothing");
}

TEST_F(CudaKernelTest, AStreamOfAnotherDeviceIsRefused) {
  const auto device = create();
  const CudaKernel kernel = cuda_kernel(*device, kSource, "ts_nothing");
  const auto other = create();
  std::byte* const nothing = nullptr;
  EXPECT_THROW(kernel.launch(other->caller_stream(), {}, nothing), ConfigError);
  const auto host = create_host_device();
  EXPECT_THROW(kernel.launch(host->caller_stream(), {}, nothing), ConfigError);
  kernel.launch(device->caller_stream(), {}, nothing);
}

}  // namespace
}  // namespace tensorstream

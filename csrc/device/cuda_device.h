// CudaDevice: a GPU, by its driver alone. Shares the primary context with whatever else computes in
// the process.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "device/checking.h"
#include "device/cuda_kernel.h"
#include "device/device.h"
#include "platform/cuda_driver.h"
#include "platform/cufile.h"
#include "platform/nvrtc.h"

namespace tensorstream {

struct CudaDeviceOptions {
  /// The driver's number of the device, among those that CUDA_VISIBLE_DEVICES leaves.
  int index = 0;
  Checking checking = Checking::kOff;
  /// Seed of the random delays.
  std::uint64_t seed = 0;
  /// The longest random delay of one piece of work of a stream, in microseconds.
  std::uint32_t longest_delay_us = 200;
  /// The driver's library; a test gives another.
  std::string driver_library = std::string(kCudaDriverLibrary);
  /// Where to look for the compiler of kernels.
  NvrtcPlaces compiler = {};
  /// Where to look for what reads files into its memory.
  CufilePlaces cufile = {};
};

/// Raises UnsupportedError where there is no driver, one that is too old, or no device; ConfigError
/// where `index` is none of the devices; CudaError where the driver fails.
std::unique_ptr<Device> create_cuda_device(const CudaDeviceOptions& options = {});

/// The kernel `function` of a source, which is compiled for the device when it is first asked for
/// and is loaded as long as the device lives, by its name and options. Raises UnsupportedError
/// where `device` is no GPU or there is no compiler; CudaError where compiler or driver fail.
/// Thread-safe; compiling takes about a second.
CudaKernel cuda_kernel(Device& device, const KernelSource& source, const char* function);

}  // namespace tensorstream

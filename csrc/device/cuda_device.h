// CudaDevice: a GPU, by its driver alone. Shares the primary context with whatever else computes in
// the process.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "device/checking.h"
#include "device/device.h"
#include "platform/cuda_driver.h"

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
};

/// Raises UnsupportedError where there is no driver, one that is too old, or no device; ConfigError
/// where `index` is none of the devices; CudaError where the driver fails.
std::unique_ptr<Device> create_cuda_device(const CudaDeviceOptions& options = {});

}  // namespace tensorstream

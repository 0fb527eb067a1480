// HostDevice: a whole device whose memory is host memory and whose streams are queues on threads.
#pragma once

#include <cstdint>
#include <memory>

#include "device/checking.h"
#include "device/device.h"

namespace tensorstream {

struct HostDeviceOptions {
  Checking checking = Checking::kOff;
  /// Seed of the random delays.
  std::uint64_t seed = 0;
  /// The longest random delay before one piece of work of a stream, in microseconds.
  std::uint32_t longest_delay_us = 200;
};

std::unique_ptr<Device> create_host_device(const HostDeviceOptions& options = {});

}  // namespace tensorstream

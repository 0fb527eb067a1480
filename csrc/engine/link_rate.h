// How fast the link between host memory and a device is.
#pragma once

#include "device/device.h"

namespace tensorstream {

/// Bytes a second from pinned host memory to `device`: the best of some copies of 64 MiB, which
/// take 25 ms at 53 GB/s, and as much of both memories meanwhile. For a host, or where memory is
/// refused, what Rates assumes. Raises CudaError.
double measure_link(Device& device);

}  // namespace tensorstream

// A GPU's DeviceDecoder.
#pragma once

#include <memory>

#include "codec/device_decoder.h"
#include "kernels/frame_decode.h"

namespace tensorstream {

/// As create_device_decoder(), by a kernel of the given shape. Raises CudaError where compiler or
/// driver fail.
std::unique_ptr<DeviceDecoder> create_cuda_decoder(Device& device,
                                                   const FrameDecodeShape& shape = {});

}  // namespace tensorstream

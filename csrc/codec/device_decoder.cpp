#include "codec/device_decoder.h"

#include "codec/cuda_decoder.h"
#include "codec/host_decoder.h"

namespace tensorstream {

std::unique_ptr<DeviceDecoder> create_device_decoder(Device& device) {
  return device.host_accessible() ? create_host_decoder() : create_cuda_decoder(device);
}

}  // namespace tensorstream

#include "codec/device_decoder.h"

#include "codec/host_decoder.h"
#include "tensorstream/error.h"

namespace tensorstream {

std::unique_ptr<DeviceDecoder> create_device_decoder(Device& device) {
  if (device.host_accessible()) return create_host_decoder();
  throw UnsupportedError("device " + device.name() + " does not decode frames");
}

}  // namespace tensorstream

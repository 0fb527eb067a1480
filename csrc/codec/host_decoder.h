// A host's DeviceDecoder. Private to codec.
#pragma once

#include <memory>

#include "codec/device_decoder.h"

namespace tensorstream {

std::unique_ptr<DeviceDecoder> create_host_decoder();

}  // namespace tensorstream

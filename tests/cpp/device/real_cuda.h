// The real GPU of this machine, if it has one.
#pragma once

#include <optional>
#include <string>

#include "device/cuda_device.h"
#include "tensorstream/error.h"

namespace tensorstream {

/// Why nothing can run on a real GPU here; nothing where it can.
inline std::optional<std::string> why_no_real_cuda() {
  try {
    create_cuda_device();
    return std::nullopt;
  } catch (const UnsupportedError& error) {
    return error.what();
  }
}

}  // namespace tensorstream

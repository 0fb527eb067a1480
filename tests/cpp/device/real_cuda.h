// The real GPU of this machine, if it has one.
#pragma once

#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "device/cuda_device.h"
#include "tensorstream/error.h"

namespace tensorstream {

/// The machine's compiler of kernels, which TENSORSTREAM_NVRTC_FOLDER may say the folder of.
inline NvrtcPlaces real_compiler() {
  const char* const folder = std::getenv("TENSORSTREAM_NVRTC_FOLDER");
  return {"", folder == nullptr ? std::vector<std::string>() : std::vector<std::string>{folder}};
}

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

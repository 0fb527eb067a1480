// Whether tests that need a GPU may be skipped.
#pragma once

#include <cstdlib>
#include <string_view>

namespace tensorstream {

/// True where the environment says that a test without its GPU fails (TENSORSTREAM_REQUIRE_GPU=1).
inline bool gpu_is_required() {
  const char* const value = std::getenv("TENSORSTREAM_REQUIRE_GPU");
  return value != nullptr && std::string_view(value) == "1";
}

}  // namespace tensorstream

// What the fake compiler makes and the fake driver loads: this, and the source behind it.
#pragma once

#include <string_view>

namespace tensorstream::fake_cuda {

inline constexpr std::string_view kFakeCubin = "fake cubin\n";

}  // namespace tensorstream::fake_cuda

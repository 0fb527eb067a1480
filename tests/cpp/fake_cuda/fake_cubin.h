// What the fake compiler makes and the fake driver loads: this, then the options, one a line, and
// the source.
#pragma once

#include <string_view>

namespace tensorstream::fake_cuda {

inline constexpr std::string_view kFakeCubin = "fake cubin\n";

}  // namespace tensorstream::fake_cuda

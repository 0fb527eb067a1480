// The sources of kernels, as the build embeds them. Private to kernels.
#pragma once

#include <string_view>

namespace tensorstream {

extern const std::string_view kWarpText;
extern const std::string_view kFrameSymbolsText;
extern const std::string_view kFrameDecodeText;

}  // namespace tensorstream

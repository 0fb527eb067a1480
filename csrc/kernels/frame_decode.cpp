#include "kernels/frame_decode.h"

#include <string>

#include "kernels/sources.h"

namespace tensorstream {

KernelSource frame_decode_source(const FrameDecodeShape& shape) {
  return {"frame_decode.cu",
          std::string(kWarpText) + std::string(kFrameSymbolsText) + std::string(kFrameDecodeText),
          {"-DTS_WARPS_A_BLOCK=" + std::to_string(shape.warps_a_block),
           "-DTS_BLOCKS_AT_LEAST=" + std::to_string(shape.blocks_at_least)}};
}

}  // namespace tensorstream

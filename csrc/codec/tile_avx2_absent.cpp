#include "codec/tile_kernels.h"

namespace tensorstream {

const TileKernels* avx2_kernels() noexcept { return nullptr; }

}  // namespace tensorstream

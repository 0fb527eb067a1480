// The kernel that decodes frames, on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "kernels/frame_decode.h"

namespace tensorstream::fake_cuda {

/// A launch of ts_decode_frames: `blocks` blocks of `warps` warps for each frame.
struct FrameDecodeLaunch {
  FrameRuns runs;
  void* decoded;
  std::uint32_t frames;
  std::uint32_t blocks;
  std::uint32_t warps;
};

void decode_frames(const FrameDecodeLaunch& launch);

/// Whether all that the launch reads and writes is memory of which `may_touch` is true.
bool touches_only(const FrameDecodeLaunch& launch,
                  const std::function<bool(const void*, std::size_t)>& may_touch);

}  // namespace tensorstream::fake_cuda

// The very source of the GPU, compiled for the host.
#include "fake_cuda/fake_frame_decode.h"

#include <memory>

#include "fake_cuda/warp_on_host.h"

// The order of the includes is that of the kernel's text.
// clang-format off
namespace {

using tensorstream::fake_cuda::FrameDecodeLaunch;

#include "kernels/frame_symbols.cu"
#include "kernels/frame_decode.cu"
#include "fake_cuda/frames_on_host.h"

}  // namespace
// clang-format on

namespace tensorstream::fake_cuda {

void decode_frames(const FrameDecodeLaunch& launch) { run_grid(launch); }

bool touches_only(const FrameDecodeLaunch& launch,
                  const std::function<bool(const void*, std::size_t)>& may_touch) {
  const auto aligned = [](const void* data) { return reinterpret_cast<u64>(data) % 16 == 0; };
  for (u32 i = 0; i < launch.frames; ++i) {
    if (!may_touch(entry_address(launch, i), sizeof(BatchedFrame))) return false;
    const u8* const encoded = run_of(launch, i).encoded + entry_of(launch, i).encoded_offset;
    if (!aligned(encoded) || !may_touch(encoded, kHeaderBytes)) return false;
    const Frame frame = frame_of(launch, i);
    if (!may_touch(encoded, load4(encoded + 16))) return false;
    if (!aligned(frame.decoded) || !may_touch(frame.decoded, frame.decoded_bytes)) return false;
  }
  return true;
}

}  // namespace tensorstream::fake_cuda

// The very source of the GPU, compiled for the host.
#include "fake_cuda/fake_frame_decode.h"

#include <memory>

#include "fake_cuda/warp_on_host.h"

namespace {
#include "kernels/frame_decode.cu"

using tensorstream::fake_cuda::FrameDecodeLaunch;

BatchedFrame entry_of(const FrameDecodeLaunch& launch, u32 index) {
  BatchedFrame entry;
  std::memcpy(&entry, static_cast<const u8*>(launch.table) + index * sizeof entry, sizeof entry);
  return entry;
}

Frame frame_of(const FrameDecodeLaunch& launch, const BatchedFrame& entry) {
  return frame_at(static_cast<const u8*>(launch.encoded) + entry.encoded_offset,
                  static_cast<u8*>(launch.decoded) + entry.decoded_offset);
}

}  // namespace

namespace tensorstream::fake_cuda {

void decode_frames(const FrameDecodeLaunch& launch) {
  const auto memory = std::make_unique<WarpMemory>();
  std::memset(memory.get(), 0xE7, sizeof *memory);  // no zeros, as shared memory has none
  const u32 warps = launch.blocks * launch.warps;
  for (u32 i = 0; i < launch.frames; ++i) {
    const Frame frame = frame_of(launch, entry_of(launch, i));
    for (u32 warp = 0; warp < warps; ++warp) {
      for (u32 index = warp; index < frame.chunks; index += warps) {
        decode_chunk(frame, index, *memory);
      }
    }
  }
}

bool touches_only(const FrameDecodeLaunch& launch,
                  const std::function<bool(const void*, std::size_t)>& may_touch) {
  const auto aligned = [](const void* data) { return reinterpret_cast<u64>(data) % 16 == 0; };
  if (!may_touch(launch.table, launch.frames * sizeof(BatchedFrame))) return false;
  for (u32 i = 0; i < launch.frames; ++i) {
    const BatchedFrame entry = entry_of(launch, i);
    const u8* const encoded = static_cast<const u8*>(launch.encoded) + entry.encoded_offset;
    if (!aligned(encoded) || !may_touch(encoded, kHeaderBytes)) return false;
    const Frame frame = frame_of(launch, entry);
    if (!may_touch(encoded, load4(encoded + 16))) return false;
    if (!aligned(frame.decoded) || !may_touch(frame.decoded, frame.decoded_bytes)) return false;
  }
  return true;
}

}  // namespace tensorstream::fake_cuda

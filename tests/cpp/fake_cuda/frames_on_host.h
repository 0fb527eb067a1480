// A grid of the kernel that decodes frames, on the host. No header by itself: it is included behind
// the kernel's source, in the namespace of each build of it.

inline BatchedFrame entry_of(const FrameDecodeLaunch& launch, u32 index) {
  BatchedFrame entry;
  std::memcpy(&entry, static_cast<const u8*>(launch.table) + index * sizeof entry, sizeof entry);
  return entry;
}

inline Frame frame_of(const FrameDecodeLaunch& launch, const BatchedFrame& entry) {
  return frame_at(static_cast<const u8*>(launch.encoded) + entry.encoded_offset,
                  static_cast<u8*>(launch.decoded) + entry.decoded_offset);
}

inline void run_grid(const FrameDecodeLaunch& launch) {
  const auto memory = std::make_unique<WarpMemory>();
  std::memset(memory.get(), 0xE7, sizeof *memory);  // no zeros, as shared memory has none
  QuadTable quads;
  for (u32 i = 0; i < 256; ++i) quads.quads[i] = QuadTable::quad(i);
  const u32 warps = launch.blocks * launch.warps;
  for (u32 i = 0; i < launch.frames; ++i) {
    const Frame frame = frame_of(launch, entry_of(launch, i));
    for (u32 warp = 0; warp < warps; ++warp) {
      for (u32 index = warp; index < frame.chunks; index += warps) {
        decode_chunk(frame, index, quads, *memory);
      }
    }
  }
}

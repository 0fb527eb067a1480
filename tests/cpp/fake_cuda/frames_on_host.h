// A grid of the kernel that decodes frames, on the host. No header by itself: it is included behind
// the kernel's source, in the namespace of each build of it.

/// The run of a row, as the kernel finds it.
inline FrameRun run_of(const FrameDecodeLaunch& launch, u32 row) {
  FrameRuns runs;
  static_assert(sizeof runs == sizeof launch.runs);
  std::memcpy(&runs, &launch.runs, sizeof runs);
  return run_of(runs, row);
}

inline const u8* entry_address(const FrameDecodeLaunch& launch, u32 row) {
  const FrameRun run = run_of(launch, row);
  return reinterpret_cast<const u8*>(run.table) + (row - run.first_row) * sizeof(BatchedFrame);
}

inline BatchedFrame entry_of(const FrameDecodeLaunch& launch, u32 row) {
  BatchedFrame entry;
  std::memcpy(&entry, entry_address(launch, row), sizeof entry);
  return entry;
}

inline Frame frame_of(const FrameDecodeLaunch& launch, u32 row) {
  const BatchedFrame entry = entry_of(launch, row);
  return frame_at(run_of(launch, row).encoded + entry.encoded_offset,
                  static_cast<u8*>(launch.decoded) + entry.decoded_offset);
}

inline void run_grid(const FrameDecodeLaunch& launch) {
  const auto memory = std::make_unique<WarpMemory>();
  std::memset(memory.get(), 0xE7, sizeof *memory);  // no zeros, as shared memory has none
  QuadTable quads;
  for (u32 i = 0; i < 256; ++i) quads.quads[i] = QuadTable::quad(i);
  const u32 warps = launch.blocks * launch.warps;
  for (u32 i = 0; i < launch.frames; ++i) {
    const Frame frame = frame_of(launch, i);
    for (u32 warp = 0; warp < warps; ++warp) {
      for (u32 index = warp; index < frame.chunks; index += warps) {
        decode_chunk(frame, index, quads, *memory);
      }
    }
  }
}

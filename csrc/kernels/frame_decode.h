// The kernel that decodes frames, as a source to compile for a GPU.
#pragma once

#include <array>
#include <cstdint>

#include "platform/nvrtc.h"

namespace tensorstream {

/// How the kernel is built; docs/adr/0011-kernels-are-compiled-where-they-run.md says why so.
struct FrameDecodeShape {
  std::uint32_t warps_a_block = 4;
  /// Blocks that fit a multiprocessor at least: a bound on the registers of a thread.
  std::uint32_t blocks_at_least = 6;
};

KernelSource frame_decode_source(const FrameDecodeShape& shape = {});

/// Runs of frames that one launch decodes at most.
inline constexpr std::uint32_t kMostRuns = 32;

/// Runs of frames, each with a table of its own, as the kernel takes them: by value.
struct FrameRuns {
  /// Where the entries of a run are, and the first byte that their offsets count from.
  std::array<std::uint64_t, kMostRuns> tables{};
  std::array<std::uint64_t, kMostRuns> encoded{};
  /// Of a run, ascending from 0; of those that are not there more than any row.
  std::array<std::uint32_t, kMostRuns> first_rows{};
};

/// Its one kernel: (FrameRuns runs, byte* decoded), by rows of blocks, each row a frame of a run.
/// All blocks of a row share the frame's chunks.
inline constexpr const char* kFrameDecodeKernel = "ts_decode_frames";

/// Rows of one launch at most.
inline constexpr std::uint32_t kMostRows = 65535;

/// Warps for which a row has room: as many as a frame of two-byte elements has chunks.
inline constexpr std::uint32_t kWarpsOfARow = 128;

}  // namespace tensorstream

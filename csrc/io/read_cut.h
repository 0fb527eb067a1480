// How a read of any bytes is cut into transfers of whole blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace tensorstream {

/// What a file asks of transfers, and how large they may be.
struct CutRules {
  std::uint64_t block_bytes = 1;
  std::uint64_t memory_alignment_bytes = 1;
  /// Most bytes of one transfer, a multiple of the block and of 4 KiB.
  std::uint64_t request_bytes = 0;
};

/// One transfer: whole blocks of a file, of which some bytes are wanted.
struct ReadPiece {
  std::uint64_t offset_bytes = 0;
  std::uint64_t size_bytes = 0;
  /// Bytes of the transfer before those that are wanted.
  std::uint64_t skip_bytes = 0;
  /// Where the wanted ones go.
  std::span<std::byte> out;
  /// Whether the transfer can be made right to `out`; elsewhere it goes through memory of ours.
  bool in_place = false;
};

/// The transfers that fill `out` from `offset_bytes` of a file on; the last one may pass the file's
/// end.
std::vector<ReadPiece> cut_read(const CutRules& rules, std::uint64_t offset_bytes,
                                std::span<std::byte> out);

}  // namespace tensorstream

#include "io/read_cut.h"

#include <algorithm>

#include "base/units.h"

namespace tensorstream {
namespace {

/// Less than this is copied sooner than its edges are read by transfers of their own.
constexpr std::uint64_t kWorthEdgesBytes = 256_KiB;

constexpr std::uint64_t kPageBytes = 4_KiB;

constexpr std::uint64_t align_down(std::uint64_t value, std::uint64_t alignment) {
  return value & ~(alignment - 1);
}

}  // namespace

std::vector<ReadPiece> cut_read(const CutRules& rules, std::uint64_t offset_bytes,
                                std::span<std::byte> out) {
  const std::uint64_t block = rules.block_bytes;
  const std::uint64_t end = offset_bytes + out.size();
  const auto address = reinterpret_cast<std::uintptr_t>(out.data());
  // Where the first whole block of the read would lie: the others lie as it does.
  const std::uint64_t first_block = align_up(offset_bytes, block);
  const bool lies_well =
      (address + (first_block - offset_bytes)) % rules.memory_alignment_bytes == 0;

  std::vector<ReadPiece> pieces;
  pieces.reserve(out.size() / rules.request_bytes + 3);
  for (std::uint64_t at = offset_bytes; at < end;) {
    ReadPiece piece;
    piece.offset_bytes = align_down(at, block);
    piece.skip_bytes = at - piece.offset_bytes;
    const std::uint64_t whole_end = align_down(end, block);
    const bool worth_edges = block == 1 || whole_end >= align_up(at, block) + kWorthEdgesBytes;
    std::uint64_t stop = piece.offset_bytes + rules.request_bytes;
    // Where any offset and address will do whole pages do best.
    const bool anywhere = block == 1 && rules.memory_alignment_bytes == 1;
    if (anywhere) stop = align_down(stop, kPageBytes);
    stop = std::min(end, stop);
    if (lies_well && worth_edges) {
      piece.in_place = piece.skip_bytes == 0;
      stop = piece.in_place ? std::min(whole_end, stop) : piece.offset_bytes + block;
    }
    piece.size_bytes = align_up(stop, block) - piece.offset_bytes;
    piece.out = out.subspan(at - offset_bytes, stop - at);
    pieces.push_back(piece);
    at = stop;
  }
  return pieces;
}

}  // namespace tensorstream

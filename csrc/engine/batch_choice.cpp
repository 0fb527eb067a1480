#include "engine/batch_choice.h"

#include <algorithm>

#include "base/units.h"
#include "engine/decode_ring.h"
#include "engine/frame_batches.h"
#include "scheduler/pass_time.h"

namespace tensorstream {
namespace {

// Sizes that are tried: so many eighths of a piece, of at most 16 MiB.
constexpr std::uint64_t kLeastEighths = 8;
constexpr std::uint64_t kMostEighths = 30;
// The ring does not give way to what torch allocates.
constexpr std::uint64_t kBudgetDivisor = 24;
constexpr std::uint64_t kLargestRingBytes = 120_MiB;
// What whoever computes waits for a decoding, however little that decodes: beside an H100 33.6 MB
// take 33.4 us, and 404.8 MB 264.2 (benchmarks/results/cuda_decode.json).
constexpr double kDecodingSeconds = 12.5e-6;
// What the link moves while a copy keeps it from moving anything, and its decoding the device.
constexpr auto kBytesACopy =
    static_cast<std::uint64_t>((kCodedCopySeconds + kDecodingSeconds) * 55e9);

/// Batches of one size, in all groups.
struct Batches {
  std::uint64_t copies = 0;
  std::uint64_t largest_bytes = 0;

  std::uint64_t ring_bytes() const { return DecodeRing::size_bytes_for(largest_bytes); }
  /// As bytes that cross the link in a pass.
  std::uint64_t cost() const { return copies * kBytesACopy + ring_bytes(); }
};

Batches batches_of(std::span<const Group> groups, std::span<const TensorSpec> tensors,
                   std::uint64_t most_bytes) {
  Batches batches;
  for (const Group& group : groups) {
    if (!is_worth_encoding(group, tensors)) continue;
    const BatchSize size = batch_size(group, tensors, most_bytes);
    batches.copies += size.count;
    batches.largest_bytes = std::max(batches.largest_bytes, size.room_bytes);
  }
  return batches;
}

}  // namespace

std::uint64_t largest_batch_bytes(std::span<const Group> groups,
                                  std::span<const TensorSpec> tensors, std::uint64_t most_bytes) {
  return batches_of(groups, tensors, most_bytes).largest_bytes;
}

std::uint64_t largest_scratch_bytes(std::span<const Group> groups,
                                    std::span<const TensorSpec> tensors, std::uint64_t most_bytes) {
  std::uint64_t largest = 0;
  for (const Group& group : groups) {
    if (!is_worth_encoding(group, tensors)) continue;
    const FrameBatches cut = cut_into_frames(group, tensors, most_bytes);
    const auto batch = std::ranges::max_element(cut.batches, {}, &FrameBatch::bound_bytes);
    if (batch != cut.batches.end()) largest = std::max(largest, batch->bound_bytes);
  }
  return largest;
}

std::uint64_t best_batch_bytes(std::span<const Group> groups, std::span<const TensorSpec> tensors,
                               std::uint64_t piece_bytes, std::uint64_t budget_bytes) {
  std::uint64_t best = batch_limit(piece_bytes);
  const std::uint64_t most = std::min(budget_bytes / kBudgetDivisor, kLargestRingBytes);
  if (most == 0) return best;
  std::uint64_t best_cost = batches_of(groups, tensors, best).cost();
  for (std::uint64_t eighths = kLeastEighths + 1; eighths <= kMostEighths; ++eighths) {
    const std::uint64_t tried = batch_limit(piece_bytes / kLeastEighths * eighths);
    const Batches batches = batches_of(groups, tensors, tried);
    if (batches.ring_bytes() > most || batches.cost() >= best_cost) continue;
    best = tried;
    best_cost = batches.cost();
  }
  return best;
}

}  // namespace tensorstream

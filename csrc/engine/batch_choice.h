// How large the batches of frames are that cross the link, and the slots that they are decoded
// from.
#pragma once

#include <cstdint>
#include <span>

#include "engine/group_layout.h"
#include "tensorstream/engine.h"

namespace tensorstream {

/// The most bytes of any batch of those groups that are worth encoding, cut to `most_bytes`; 0
/// where none is.
std::uint64_t largest_batch_bytes(std::span<const Group> groups,
                                  std::span<const TensorSpec> tensors, std::uint64_t most_bytes);

/// What to cut batches to in a budget, where a copy moves `piece_bytes`. Each copy costs the link
/// some microseconds, and what the ring takes of the budget is not there for weights that stay:
/// what is best of both. Batches larger than a piece need a budget of which their ring takes a 24th
/// at most; no ring takes more than 120 MiB. For a budget of 0 bytes, the least.
std::uint64_t best_batch_bytes(std::span<const Group> groups, std::span<const TensorSpec> tensors,
                               std::uint64_t piece_bytes, std::uint64_t budget_bytes);

/// The most that a batch takes before it is known what its frames become: half as much again as
/// after it.
std::uint64_t largest_scratch_bytes(std::span<const Group> groups,
                                    std::span<const TensorSpec> tensors, std::uint64_t most_bytes);

}  // namespace tensorstream

// Where the streamed groups lie for an order of use that is not their cycle: a backward takes the
// groups of a block again, in reverse.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "tensorstream/plan.h"

namespace tensorstream {

/// Whether `uses`, one after the other, are no plain cycle of the streamed groups of `plan`: some
/// are used again before all others were. False where they leave some of them out.
bool uses_repeat(const Plan& plan, std::span<const GroupId> uses);

/// Where the streamed groups of `plan`, made for `groups`, lie best in an arena of its size for
/// `uses`: where the fewest bytes are loaded, those twice that wait for the use just before. By
/// GroupId, for others what `plan` says. Nothing where hardly fewer are loaded than as they lie.
std::optional<std::vector<std::uint64_t>> offsets_for_uses(std::span<const GroupFootprint> groups,
                                                           const Plan& plan,
                                                           std::span<const GroupId> uses);

}  // namespace tensorstream

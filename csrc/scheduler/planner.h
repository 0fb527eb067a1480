// The planner: residents spread among the streamed groups, an arena with fixed offsets, everything
// within the budget. Pure: no device, no files, no clock.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "scheduler/pass_time.h"
#include "tensorstream/plan.h"

namespace tensorstream {

/// Plans `groups`, given in the order of use, for `budget_bytes` of device memory.
///
/// - kRequired groups are resident. Of the kAny groups as many bytes as possible are resident,
///   spread evenly among the streamed ones, so that link and compute stay busy; kByRows groups
///   become resident only when all others are.
/// - Groups that may stay coded (GroupFootprint) do so where that makes a pass shorter: in place of
///   streamed ones, which cross the link, or of residents, whose room others then have.
/// - The streamed groups, and those that stay coded, share one arena. Each has a fixed offset, a
/// multiple of kGroupAlignment.
///   Groups that follow each other in the cyclic order (the last is followed by the first) share
///   no bytes where the budget allows it, for any sizes and for odd numbers of groups too. Where it
///   does not, or where sharing leaves room for so many more residents that it saves a quarter
///   (StreamingSearch says of what), loads are exposed and counted in exposed_loads.
/// - Loaded at their use (Rates::loading), streamed groups all share one place of the size of the
///   largest, and no load counts as exposed.
/// - Where host memory has no room for the homes of all that is loaded (Rates::home_bytes), those
/// that
///   find none are spread evenly among the others; what stays coded comes first.
/// - resident_bytes + kept_bytes + arena_bytes <= budget_bytes, always. Among the plans that fit,
/// the one with
///   the least predicted time. Every group counts as a multiple of kGroupAlignment.
/// - Deterministic: the same input gives the same plan.
///
/// Raises BudgetError, naming the group that does not fit, its size, the budget and the smallest
/// budget that works, where not even synchronous loading fits; ConfigError for rates that are not
/// positive numbers (a compute time of 0 means that it is not known).
Plan make_plan(std::span<const GroupFootprint> groups, std::uint64_t budget_bytes,
               const Rates& rates);

/// What `plan`, made for `groups`, costs: by what the planner chooses. To be compared alone.
double plan_cost(std::span<const GroupFootprint> groups, const Rates& rates, const Plan& plan);

/// Whether passes by `better` are noticeably shorter than by `now`, and so much that
/// ExchangePolicy::kPassesToMakeUp of them make up for what its new residents take to load, where
/// the device is known to compute for Rates::compute_seconds. Both are made for `groups`.
bool is_worth_exchanging(std::span<const GroupFootprint> groups, const Rates& rates,
                         const Plan& now, const Plan& better);

/// Where the streamed groups of `plan`, made for `groups`, lie best in an arena of its size: what
/// make_plan() chooses for the residents that it has. By GroupId, for others what `plan` says.
/// Nothing where a pass would take hardly less time.
std::optional<std::vector<std::uint64_t>> better_offsets(std::span<const GroupFootprint> groups,
                                                         const Rates& rates, const Plan& plan);

/// Says which groups of `plan`, made for `groups`, have homes: those whose homes are there.
void note_homes(std::span<const GroupFootprint> groups, Plan& plan);

/// What the model of time sees of `plan`, made for `groups`, in the order of use.
std::vector<PassStep> pass_steps(std::span<const GroupFootprint> groups, const Plan& plan);

/// Predicts anew what a pass by `plan`, made for `groups`, takes: by what they are known to move
/// now.
void predict_pass(std::span<const GroupFootprint> groups, const Rates& rates, Plan& plan);

/// The smallest budget that make_plan accepts: required residents and the largest streamed group.
std::uint64_t smallest_budget_bytes(std::span<const GroupFootprint> groups);

/// The smallest budget with which make_plan has every group resident as it is.
std::uint64_t everything_fits_bytes(std::span<const GroupFootprint> groups);

}  // namespace tensorstream

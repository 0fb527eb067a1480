// Which of the groups that may be streamed stay on the device.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tensorstream {

/// What choose_residents() goes by.
struct ResidentChoice {
  /// Bytes that residents may take.
  std::uint64_t capacity = 0;
  /// Groups larger than this are resident whatever else is: the arena has no room for them. Their
  /// sum is within `capacity`.
  std::uint64_t largest_streamed = 0;
  /// Groups of at most this many bytes are resident first: their load would cost more than their
  /// bytes do.
  std::uint64_t small_bytes = 0;
};

/// Chooses residents among groups of `sizes`, in the cyclic order of use: as many bytes as
/// `capacity` takes, spread evenly among the streamed ones, until no streamed group would fit
/// beside them. True at the positions of residents.
std::vector<bool> choose_residents(std::span<const std::uint64_t> sizes,
                                   const ResidentChoice& choice);

}  // namespace tensorstream

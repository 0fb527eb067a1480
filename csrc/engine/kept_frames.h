// KeptFrames: device memory that holds the batches of a group's home, which are decoded from there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "engine/decode_ring.h"
#include "engine/encoded_home.h"
#include "memory/pool.h"

namespace tensorstream {

/// A copy, on the device, of what a home has in host memory: a home never changes, so what is there
/// stays true, also where a tensor was written, which leaves its home. Guarded by who uses it.
class KeptFrames {
 public:
  explicit KeptFrames(Block memory) : memory_(std::move(memory)) {}

  /// The place of the home's batch of that number; null where there is no room for it. All calls
  /// are for the group's one home.
  KeptBatch* place(const EncodedHome& home, std::size_t number);
  std::uint64_t size_bytes() const noexcept { return memory_.size_bytes(); }
  /// Lets go of the memory, which nothing that is enqueued uses.
  Block release() noexcept { return std::move(memory_); }

 private:
  Block memory_;
  std::vector<KeptBatch> batches_;  // by number; those without room have no memory
};

}  // namespace tensorstream

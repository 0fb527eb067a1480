// What an engine did. Layer: engine.
#pragma once

#include <cstdint>
#include <string>

namespace tensorstream {

/// What was decided on coding weights at home, and what it gave.
struct CompressionStatistics {
  /// 0 where weights are as they are.
  std::uint32_t level = 0;
  /// What frames take in host memory, and what they are as weights.
  std::uint64_t coded_bytes = 0;
  std::uint64_t decoded_bytes = 0;
  /// Why this level, for people.
  std::string reason;

  /// Coded bytes a byte of weights; 1 where nothing is coded.
  double ratio() const noexcept {
    return decoded_bytes > 0 ? static_cast<double>(coded_bytes) / static_cast<double>(decoded_bytes)
                             : 1;
  }
};

/// Counters of one engine since it was opened. Bytes and seconds.
struct Statistics {
  std::uint64_t budget_bytes = 0;
  /// Device memory that the engine holds now, and the most it ever held.
  std::uint64_t held_bytes = 0;
  std::uint64_t peak_held_bytes = 0;
  /// What of it keeps weights coded.
  std::uint64_t kept_bytes = 0;
  /// Bytes of residents that gave way and have not come back, coded ones as they were kept, and how
  /// many groups ever did.
  std::uint64_t given_way_bytes = 0;
  std::uint64_t gave_way = 0;
  /// Bytes that the plan leaves free since a request was refused.
  std::uint64_t made_room_bytes = 0;
  /// Weight bytes owned by host RAM (made at loading, or written by the user) and not by a file.
  /// Outside the budget on devices that are not the host.
  std::uint64_t source_ram_bytes = 0;
  /// Pinned host memory that holds such: less than their bytes where they are coded.
  std::uint64_t pinned_bytes = 0;
  /// Pinned host memory that what is read from files, or from RAM that is not pinned, goes through.
  std::uint64_t staging_bytes = 0;
  /// The ceiling of host memory beside a device that is not the host, 0 for none; what is held of
  /// it (homes, staging, memory to encode in; with that of other engines that share it), and the
  /// most that ever was.
  std::uint64_t ram_budget_bytes = 0;
  std::uint64_t ram_held_bytes = 0;
  std::uint64_t peak_ram_held_bytes = 0;
  CompressionStatistics compression;

  std::uint64_t acquires = 0;
  /// Acquires that found the group on the device.
  std::uint64_t hits = 0;
  /// Acquires that found its load under way.
  std::uint64_t partial_hits = 0;
  /// Acquires that had to start the load themselves.
  std::uint64_t misses = 0;
  /// Uses in another order than the learnt one.
  std::uint64_t surprises = 0;
  std::uint64_t loads = 0;
  /// Bytes that loads moved: of weights that are coded, their frames.
  std::uint64_t streamed_bytes = 0;
  std::uint64_t streamed_ram_bytes = 0;
  std::uint64_t streamed_disk_bytes = 0;
  /// Of these, what was read, or on its way, before a load of a device that is not the host began.
  std::uint64_t read_ahead_bytes = 0;
  /// What the streamed bytes are as weights.
  std::uint64_t decoded_bytes = 0;
  /// Weights that were decoded from what the device keeps: no load moved their bytes.
  std::uint64_t kept_decoded_bytes = 0;
  /// Rows and whole tensors read outside any lease.
  std::uint64_t on_demand_bytes = 0;
  /// Time that loads took, from when each was enqueued, or the one before it was done, to its end,
  /// and the time callers of acquire() were blocked.
  double load_seconds = 0;
  double stalled_seconds = 0;
  /// Time since the first acquire.
  double active_seconds = 0;
  /// What the host took for the last passes beside leases and stalls, by the median of some whole
  /// ones; 0 before, and on a device that is the host.
  double host_seconds = 0;
  /// As Engine::plan() has it now.
  double predicted_seconds = 0;

  /// The rate at which loads moved bytes while they ran; 0 before the first.
  double streamed_bytes_per_second() const noexcept {
    return load_seconds > 0 ? static_cast<double>(streamed_bytes) / load_seconds : 0;
  }
  /// The share of the time since the first acquire that callers were blocked.
  double stalled_share() const noexcept {
    return active_seconds > 0 ? stalled_seconds / active_seconds : 0;
  }
};

}  // namespace tensorstream

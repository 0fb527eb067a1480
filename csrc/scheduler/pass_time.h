// The model of time: one pass over all groups, by link, compute and the thread that runs it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "tensorstream/plan.h"

namespace tensorstream {

/// What a decoding costs beside its bytes: launches and events. To be measured.
inline constexpr double kDecodeOverheadSeconds = 50e-6;

/// What a copy of coded bytes costs the link beside them: it waits for its slot of the ring, and
/// the decoding for it. 8 to 12 us beside an H200, whatever its size:
/// docs/adr/0012-weights-at-home-are-coded.md.
inline constexpr double kCodedCopySeconds = 10e-6;

/// One group of the cyclic order, as the model of time sees it.
struct PassStep {
  std::uint64_t size_bytes = 0;
  bool streamed = false;
  /// For groups in the arena: how many of them ago the nearest one that shares bytes was used.
  std::uint32_t sharing_distance = 0;
  /// What its load moves, where that is not size_bytes.
  std::optional<std::uint64_t> coded_bytes{};
  /// In the arena too, but decoded from the device's memory: not streamed.
  bool kept = false;
  /// Streamed, and read from files first.
  bool from_disk = false;
  /// Resident in every plan: used without a lease.
  bool settled = false;
  /// As GroupFootprint has them, for one that is from disk.
  std::optional<std::uint64_t> frame_bytes{};
  bool decodes_frames = false;
  /// In the arena still since its last use: not loaded.
  bool still_there = false;
  /// The copies that bring coded_bytes.
  std::uint64_t coded_copies = 0;
  /// Its tensors: a lease lends each of them.
  std::uint64_t tensors = 0;

  std::uint64_t disk_bytes() const { return from_disk ? frame_bytes.value_or(size_bytes) : 0; }
  std::uint64_t link_bytes() const {
    if (from_disk) return decodes_frames ? disk_bytes() : size_bytes;
    return coded_bytes.value_or(size_bytes);
  }
  /// What of a load's copies is not their bytes.
  double copies_seconds() const {
    return from_disk ? 0 : kCodedCopySeconds * static_cast<double>(coded_copies);
  }
  bool decoded() const {
    return kept || (streamed && (from_disk ? decodes_frames : coded_bytes.has_value()));
  }
  bool host_decodes() const { return from_disk && frame_bytes.has_value() && !decodes_frames; }
};

/// Seconds that one pass takes in a steady state. Loads are made in order, each once the link is
/// free and the earlier users of its place are done; a group computes after its load and after the
/// group before it, and takes its share of the compute time by its bytes. Decoding takes turns with
/// computing: both use all of the device. The disk reads in order too, and is ahead of the loads by
/// as much as is read ahead of them.
///
/// A thread of the host leases each group and enqueues its work, ahead of the device by no more
/// than loads are, and begins a pass when the one before it is done. Where groups are loaded at
/// their use it is the one that computes, and none of its time is counted apart.
double pass_seconds(std::span<const PassStep> steps, const Rates& rates);

/// What of that is decoding.
double decode_seconds(const PassStep& step, const Rates& rates);
/// What decoding on the host takes of its load.
double host_decode_seconds(const PassStep& step, const Rates& rates);
/// What the link is busy for with a load, and with those of a pass, by itself.
double link_seconds(const PassStep& load, const Rates& rates);
double link_seconds(std::span<const PassStep> steps, const Rates& rates);
/// What of that counts where plans are compared, beside a pass that hides it.
double felt_link_seconds(std::span<const PassStep> steps, const Rates& rates);
/// What the leases of a pass take of the host's thread.
double leases_seconds(std::span<const PassStep> steps, const Rates& rates);

}  // namespace tensorstream

// Plan: which group lives where, and what that predicts. Layer: scheduler.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace tensorstream {

/// Index of a group in its model, in the order in which the model is expected to use them.
using GroupId = std::uint32_t;

/// Where a group lives.
enum class Placement {
  /// On the device for good.
  kResident,
  /// On the device for good, coded: decoded into its place of the arena at each use.
  kResidentCoded,
  /// In its place of the arena while it is used; loaded at each use.
  kStreamed,
  /// Never whole on the device: rows or single tensors are read from the source at each use.
  kOnDemand,
};

/// What the planner is free to do with a group.
enum class Residency {
  kAny,
  /// Resident in every plan: tiny, used across other groups, or asked for by the user.
  kRequired,
  /// Read by rows: resident where there is room after everything else, on demand otherwise.
  kByRows,
};

/// Whether a group has a home: pinned host memory from which a device that is not the host loads
/// it.
enum class HomeState {
  /// Not yet.
  kOpen,
  kThere,
  /// None is needed: its source is a file in RAM that the device copies from by itself.
  kAtSource,
  /// It was refused: its loads go to its sources.
  kRefused,
};

/// What the planner needs to know of a group.
struct GroupFootprint {
  std::string name;
  /// Bytes it takes on the device, alignment included.
  std::uint64_t size_bytes = 0;
  Residency residency = Residency::kAny;
  /// Bytes that cross the link at a load, where these are not its own: it crosses coded.
  std::optional<std::uint64_t> coded_bytes{};
  /// Device memory that keeps these, to decode from there; 0 where they do not stay.
  std::uint64_t kept_bytes = 0;
  /// Whether its sources are files: without a home each of its loads reads them.
  bool in_files = false;
  HomeState home = HomeState::kOpen;
  /// What a load without a home reads, where that is not size_bytes: the files have frames.
  std::optional<std::uint64_t> frame_bytes{};
  /// Whether the device decodes those. Else the host does, and weights cross as they are.
  bool decodes_frames = false;
  /// The copies that bring coded_bytes.
  std::uint64_t coded_copies = 0;
  /// Its tensors, which each lease lends.
  std::uint64_t tensors = 0;
};

/// When the streamed groups are loaded.
enum class Loading {
  /// While groups before them compute, where the arena has room for both.
  kAhead,
  /// When they are used, by the threads that compute: they share one place, which stays in the
  /// cores' cache, and all other bytes go to residents.
  kAtUse,
};

/// What the model of time goes by. Bytes a second, seconds.
struct Rates {
  double link_bytes_per_second = 5e9;
  /// Compute time of the whole model for one pass, at batch 1.
  double compute_seconds = 0;
  /// Weights that the device decodes: what an H100 was measured to write for blocks of a 7B model
  /// (benchmarks/results/cuda_decode.json).
  double decode_bytes_per_second = 1.5e12;
  Loading loading = Loading::kAhead;
  /// Reads of files, and how many bytes they may be ahead of the loads that they are for.
  double disk_bytes_per_second = 2e9;
  std::uint64_t disk_ahead_bytes = std::uint64_t{64} << 20U;
  /// Weights that the thread which loads decodes, of files that have frames, where the device does
  /// not: docs/adr/0024-frames-from-files.md.
  double host_decode_bytes_per_second = 1.5e9;
  /// Host memory that homes may take, beside those that are there.
  std::uint64_t home_bytes = std::numeric_limits<std::uint64_t>::max();
  /// What the thread that runs a pass takes for it (Python, launches), leases and waits apart. 0
  /// where that is not known, or where the host computes: it is compute time then.
  double host_seconds = 0;
  /// What that thread takes to have an accelerator do next to nothing, and for the Python of it, as
  /// it was measured (host_rate.py): what a pass is predicted by, before one was timed. 0 where
  /// that is not known. No plan is another for it: hosts change from one minute to the next.
  double host_call_seconds = 0;
  /// What a lease of a group in the arena takes of that thread: hooks, parameters lent and parked.
  /// One that stays coded takes twice that, with its decoding, and a resident a third.
  /// Measured beside an H100: 30 us for a matrix to 90 us for a block of a 7B model
  /// (benchmarks/results/gpu_llama.json, acquire_release_us).
  double lease_seconds = 60e-6;
  /// What each tensor of a lease takes beside that. Plans count leases alone; where
  /// host_call_seconds is known, predictions count both by what was measured of groups that stay
  /// coded (docs/adr/0022-what-a-lease-costs.md), and of the others in the same shares.
  double lend_seconds = 0;
  /// The groups one after the other, as passes in a row use them, where that is no plain cycle:
  /// backward takes those of a block again. Plans are chosen for it, and predicted for a plain
  /// pass. An engine goes by the order that it learnt, whatever its options say.
  std::vector<GroupId> uses{};
};

struct GroupPlacement {
  Placement placement = Placement::kStreamed;
  /// Start of its place in the arena: of a streamed group, one that is resident coded, or a
  /// resident one that gives way.
  std::uint64_t offset_bytes = 0;
  /// Device memory for its coded bytes: of one that is resident coded.
  std::uint64_t kept_bytes = 0;
  /// Of one that is streamed or resident coded: it has a home in host memory.
  bool at_home = false;
  /// Of a streamed group: it has none, and its loads read files.
  bool from_disk = false;
};

struct Plan {
  /// By GroupId.
  std::vector<GroupPlacement> groups;
  std::uint64_t budget_bytes = 0;
  std::uint64_t resident_bytes = 0;
  /// Device memory that keeps weights coded, and these weights' places: what one pass decodes
  /// there.
  std::uint64_t kept_bytes = 0;
  std::uint64_t kept_weights_bytes = 0;
  std::uint64_t arena_bytes = 0;
  /// The arena in which residents that give way compute: the same, or, where nothing is streamed,
  /// one that the largest of them fits. A resident that is larger does not give way.
  std::uint64_t spare_arena_bytes = 0;
  /// Bytes of the streamed groups' places, alignment included: what one pass moves, but for that.
  std::uint64_t streamed_bytes = 0;
  /// What of these crosses the link in one pass: less where groups cross coded.
  std::uint64_t link_bytes = 0;
  /// What is read from files for these in one pass, and the host memory that the homes of the
  /// others, and of groups that are resident coded, take.
  std::uint64_t disk_bytes = 0;
  std::uint64_t home_bytes = 0;
  /// Device memory that coded weights are decoded from, beside residents and arena.
  std::uint64_t ring_bytes = 0;
  std::uint64_t on_demand_bytes = 0;
  /// The smallest budget that works for these groups, and the smallest with which all are resident
  /// as they are.
  std::uint64_t smallest_budget_bytes = 0;
  std::uint64_t everything_fits_bytes = 0;
  /// Pairs of streamed groups that follow each other and share arena bytes: the second's load waits
  /// for the first's use. 0 where groups are loaded at their use: there every load does, and none
  /// is counted.
  std::uint32_t exposed_loads = 0;
  /// Time of one pass in a steady state by the model of time, and what bounds it: "link", "disk",
  /// "compute", "decode", which takes turns with computing and takes longer, "host", the thread
  /// that runs the pass, or "nothing streamed".
  double predicted_seconds = 0;
  std::string bound;
};

}  // namespace tensorstream

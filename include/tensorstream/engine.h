// Engine: open -> plan -> acquire/release -> close. Layer: engine.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tensorstream/dtype.h"
#include "tensorstream/grouping.h"
#include "tensorstream/plan.h"
#include "tensorstream/statistics.h"

namespace tensorstream {

class Budget;
class Device;
class Reader;
class Stream;

/// Bytes of one source: a piece of a file or of host memory.
struct Extent {
  /// Index into ModelSpec::sources.
  std::uint32_t source = 0;
  std::uint64_t offset_bytes = 0;
  std::uint64_t size_bytes = 0;
};

/// One tensor's bytes: its extents one after the other.
struct TensorSpec {
  std::string name;
  Dtype dtype = Dtype::kU8;
  std::uint64_t size_bytes = 0;
  std::vector<Extent> extents;
  /// Where the tensor begins within a cache line (kCacheLineBytes) in the model's own memory. On a
  /// host its place begins there too: what multiplies matrices chooses its code by alignment, and
  /// other code rounds otherwise.
  std::uint32_t line_offset_bytes = 0;
  /// About what its frames take, of a tensor whose files have it as such; 0 for others.
  std::uint64_t frame_bytes = 0;
};

/// What an engine runs.
struct ModelSpec {
  std::vector<std::shared_ptr<Reader>> sources;
  std::vector<TensorSpec> tensors;
  std::vector<Group> groups;
};

/// When groups are loaded.
enum class Prefetch {
  /// When they are acquired.
  kNone,
  /// Also the next group in the order, on a stream of the engine's.
  kNext,
  /// Also as many of the next groups as the arena has room for without taking what is needed
  /// sooner.
  kAhead,
  /// When they are acquired, on the threads of the caller; the disk is asked for the next ones, so
  /// that their bytes are in the page cache by then. For devices that are the host.
  kReadAhead,
  /// kReadAhead where the device computes on the host's cores, which a copy ahead would take from
  /// it; kAhead elsewhere.
  kAdaptive,
};

/// EngineOptions::reserved_share where torch's allocations are under the same budget.
inline constexpr double kActivationShare = 1.0 / 8;
/// What stays free of such a budget once residents take what forwards do not need, so that a
/// forward that is a little longer than the last ones does not send them away again.
std::uint64_t spared_bytes(std::uint64_t budget_bytes) noexcept;
/// What is kept of such a budget for what calling code allocates between forwards: inputs, the next
/// token, latents. Torch takes 22 MiB at once for some of it.
std::uint64_t outside_bytes(std::uint64_t budget_bytes) noexcept;

/// Whose cores compute.
enum class ComputePlace { kHost, kAccelerator };

ComputePlace compute_place(const Device& device) noexcept;
/// `prefetch`, or what kAdaptive means there.
Prefetch resolve_prefetch(Prefetch prefetch, ComputePlace place) noexcept;
/// What the planner needs to know of it. `prefetch` is resolved.
Loading loading_of(Prefetch prefetch) noexcept;

/// How residents are used.
enum class ResidentUse {
  /// Without leases: they stay where they are until set_budget(), and what is written there is
  /// their value.
  kSettled,
  /// By leases, as streamed groups are: they may give way. Residency::kRequired and kByRows ones
  /// are settled all the same, and all are where everything fits and the budget has room for as
  /// much again, or 4 GiB: then nothing has to give way.
  kLeased,
};

/// What the driver of a GPU gives memory in.
inline constexpr std::uint64_t kDevicePageBytes = 2U << 20U;

struct EngineOptions {
  Prefetch prefetch = Prefetch::kAdaptive;
  ResidentUse residents = ResidentUse::kSettled;
  Rates rates;
  /// The share of the budget, 1 GiB at most, that is left to what else is allocated under it, as
  /// far as the groups' smallest plan allows, until take_back() says what of it is not needed.
  double reserved_share = 0;
  /// Bytes that the model keeps on the device besides its groups (buffers): charged to the budget.
  std::uint64_t fixed_bytes = 0;
  /// Largest piece that one read or copy moves.
  std::uint64_t piece_bytes = 16U << 20U;
  /// What memory for coded residents is taken in.
  std::uint64_t kept_page_bytes = kDevicePageBytes;
  /// What homes in host memory are charged to; null where nothing is. Shared with other engines.
  std::shared_ptr<Budget> ram_budget;
  /// How weights at home are coded, without loss, for the device to decode: a level from 1 to 9, 0
  /// for not at all, and nothing for what the model of time says. The statistics have the choice.
  std::optional<std::uint32_t> compression = 0;
};

/// Where one tensor of a group is while the group is leased or resident: `data` is device memory,
/// valid from the moment the wait that acquire() enqueued is over until release(), and for a
/// settled resident until set_budget(). The address stays the same until the group's place_number()
/// changes: by set_budget(), where it gives way, and where it comes back. On a host device a
/// resident tensor that a RAM source owns stays where it is.
struct TensorPlace {
  TensorId tensor = 0;
  std::byte* data = nullptr;
  std::uint64_t size_bytes = 0;
};

/// How Engine::set_budget() waits for leases.
struct LeaseWait {
  std::chrono::milliseconds longest{10'000};
  /// Called often meanwhile, on the waiting thread: what it raises ends the wait. May be empty.
  std::function<void()> check;
};

/// Streams the weights of one model on one device. Thread-safe. The device outlives the engine;
/// nothing is leased when it is destroyed. Leases of one group that are held at the same time are
/// used on one stream, or on streams that the caller has ordered.
class Engine {
 public:
  /// Plans, allocates and loads the resident groups. Raises BudgetError, IoError, ConfigError, and
  /// UnsupportedError where a level of compression is asked for that the device does not decode.
  Engine(Device& device, std::shared_ptr<Budget> budget, ModelSpec model,
         const EngineOptions& options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// The plan that the budget was last set to. What it predicts goes by what the host was measured
  /// to take for passes, once it was (note_pass_begun); by what is usual before.
  Plan plan() const;
  const std::vector<Group>& groups() const noexcept;
  /// The places of a group's tensors, in the order of Group::tensors; empty for a group that has
  /// none now.
  std::vector<TensorPlace> places(GroupId group) const;
  std::uint32_t place_number(GroupId group) const;
  /// Whether no other group shares the group's place, for as long as its place_number() lasts.
  bool has_own_place(GroupId group) const;
  /// Grows whenever any place_number() changes.
  std::uint64_t place_moves() const;
  /// Whether the group is resident and used without leases.
  bool settled(GroupId group) const;

  /// Which groups set_budget() would settle, by GroupId. Raises BudgetError, with the smallest
  /// budget that works for these groups, where `limit_bytes` is less.
  std::vector<bool> settled_under(std::uint64_t limit_bytes) const;
  /// Moves the ceiling of the engine's budget and gives every group its place by a new plan; what
  /// the device's memory of settled residents holds, and their sources do not, is kept in RAM.
  /// Nobody uses the engine meanwhile; views of places that change are void. Raises BudgetError,
  /// and LeaseError while a group is leased, and changes nothing then; BudgetError and what a load
  /// raises where the device or a source fails on the way: the limit and the plan are those of
  /// before then, as far as the device has the memory still, and the engine stays usable.
  void set_budget(std::uint64_t limit_bytes);
  /// The same, but waits for leases of other threads to end, as those are of which backward takes a
  /// weight: raises LeaseError where one does not.
  void set_budget(std::uint64_t limit_bytes, const LeaseWait& wait);
  /// Frees at least `wanted_bytes` of the budget as far as leased residents can give way; returns
  /// what it freed. They are streamed from then on. From any thread, at any time; blocks until work
  /// that uses them is done.
  std::uint64_t give_way(std::uint64_t wanted_bytes);
  /// Plans anew so that `wanted_bytes` of the budget stay free, with a smaller arena and fewer
  /// residents, for as long as take_back() does not undo it. Between uses. False, and nothing is
  /// changed, where that cannot be. Raises LeaseError while a group is leased.
  bool make_room(std::uint64_t wanted_bytes);
  /// Undoes make_room(), and gives residents that gave way memory of their own again where more
  /// than `spared_bytes` of the budget stay free beside them; returns what it took. Blocks until
  /// enqueued work is done. Raises LeaseError where a group is leased that would move.
  std::uint64_t take_back(std::uint64_t spared_bytes);

  /// Whether some groups have no place: the device had no memory when they were moved. They are
  /// read from host memory or files at each use until take_back() finds them one.
  bool lacks_places() const;

  /// Arranges groups for what gave way or came back, if passes get noticeably shorter by that: by
  /// a new plan, until take_back(), or in the arena alone. `headroom_bytes` is what others will
  /// need of the budget beside what they hold now. Between uses; blocks as take_back().
  void adapt(std::uint64_t headroom_bytes);
  /// Exchanges residents where link, disk and host are not all that the last whole pass took
  /// (note_pass_begun), and what the device then computes for hides more loads of others: what gave
  /// way is what a pass uses last. Else as adapt().
  void exchange_residents(std::uint64_t headroom_bytes);
  /// Arranges groups for the order in which they were used, where that is no plain cycle (backward
  /// takes the groups of a block again), or is one again: in the bytes that the last plan was made
  /// for, less what others need again of them, `headroom_bytes` beside what they hold now. False,
  /// and nothing is changed, while a group is leased. Blocks as take_back().
  bool adapt_to_order(std::uint64_t headroom_bytes);

  /// Takes a lease of a streamed or resident group: work that `stream` is given after this call
  /// sees the group's bytes. Blocks the caller until the load is enqueued (done, where it can
  /// fail), for which only few others may be under way. Leases nest. False, and no lease, where the
  /// group has no place to be now: it is on demand, or leases of other groups hold its part of the
  /// arena; read its tensors one by one then. Raises what the load raised, and UnsupportedError
  /// where `stream` is captured into a graph (the engine stays usable).
  [[nodiscard]] bool acquire(GroupId group, Stream& stream);
  /// Gives a lease back: once the work that `stream` holds now is done, the place may be reused.
  /// Raises LeaseError where the group is not leased, and UnsupportedError where `stream` is
  /// captured into a graph: it stays leased then.
  void release(GroupId group, Stream& stream);
  /// Gives back every lease of every group, as after a forward that was abandoned, and forgets the
  /// order of that forward. Never throws; does nothing where `stream` is captured into a graph.
  void release_all(Stream& stream) noexcept;

  /// The current true bytes of a tensor, whole, into host memory of exactly its size. Leases and
  /// places are left alone.
  void read_tensor(TensorId tensor, std::span<std::byte> out);
  /// Rows of a tensor seen as (rows, row_bytes): `out` holds indices.size() rows, in their order.
  /// Raises ConfigError for an index outside the tensor.
  void read_rows(TensorId tensor, std::span<const std::int64_t> indices, std::uint64_t row_bytes,
                 std::span<std::byte> out);
  /// Whether `bytes` equal the tensor's current true bytes. Raises ConfigError where the sizes
  /// differ.
  bool tensor_equals(TensorId tensor, std::span<const std::byte> bytes);
  /// From now on the tensor's bytes are those at `bytes`, which `owner` keeps alive: a write by the
  /// user, owned by host RAM. The next lease of its group sees them, also where the old ones were
  /// loaded already. Not for a leased group (LeaseError) nor a settled one (ConfigError: its bytes
  /// on the device are the truth).
  void replace_tensor(TensorId tensor, std::span<const std::byte> bytes,
                      std::shared_ptr<const void> owner);

  /// Moves a group's bytes into pinned host memory of the engine, from where a device that is not
  /// the host loads them at the full rate of its link; their sources are let go. Encoded, where
  /// weights are (EngineOptions::compression) and the group is worth it and not read by rows. For
  /// groups that are not settled; nothing happens on a host, or where the group is at home. Raises
  /// BudgetError where host memory has no room, and IoError: the group is loaded from its sources
  /// then, slower.
  void bring_home(GroupId group);
  /// The groups to bring home, the most useful first: what the plan has at home, then those read by
  /// rows and residents that may give way, as far as host memory has room.
  std::vector<GroupId> groups_to_bring_home() const;
  /// Plans anew by what the homes of groups turned out to take, and says in plan() what has none:
  /// call it when they have been brought home, and nothing is leased. More of
  /// groups_to_bring_home() may find room then. False, and nothing is changed, where groups would
  /// be settled or unsettled by that, or where nothing is encoded. Raises as set_budget() does.
  bool plan_anew();
  /// Where kernels see the tensor's bytes in its group's home, at its place in the layout; null
  /// where it is not pinned there, or is encoded. Valid while the engine lives. A kernel that
  /// writes there changes the tensor: say so by note_write().
  std::byte* home_address(TensorId tensor) const;
  /// The tensor's home was changed by work that `stream` holds now: later loads see it. Not for a
  /// leased group (LeaseError) nor a settled one (ConfigError: its bytes on the device are the
  /// truth).
  void note_write(TensorId tensor, Stream& stream);

  /// A pass over the model begins, or is over: by the time between, on the thread that runs it, the
  /// engine knows what the host takes. A pass that is given up need not end.
  void note_pass_begun();
  void note_pass_ended();

  Statistics statistics() const;
  /// The same without host_seconds and predicted_seconds, which go through all groups: for what is
  /// asked after each forward.
  Statistics counters() const;

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace tensorstream

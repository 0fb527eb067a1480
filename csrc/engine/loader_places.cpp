// Where the loader's groups are by a plan.
#include <algorithm>
#include <span>
#include <unordered_set>
#include <utility>

#include "engine/loader.h"
#include "platform/mapping.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// A process has 65,530 mappings by default, and a window is up to three.
constexpr std::size_t kMostWindows = 8192;

/// A pass takes each group once, backward with what it computes again up to three times.
constexpr std::size_t kUsesToArrangeFor = 8;
/// Plans for an order take a time that grows with its length.
constexpr std::size_t kMostGroupsToArrange = 512;

bool leaves_out_none(std::span<const GroupId> uses, std::span<const GroupId> groups) {
  const std::unordered_set<GroupId> used(uses.begin(), uses.end());
  return std::ranges::all_of(groups, [&](GroupId group) { return used.contains(group); });
}

/// Whether `uses` begin again after each so many.
bool is_cycle(std::span<const GroupId> uses, std::size_t groups) {
  return std::equal(uses.begin() + static_cast<std::ptrdiff_t>(groups), uses.end(), uses.begin());
}

}  // namespace

Where Loader::where(GroupId group) const {
  const MutexLock lock(mutex_);
  return slot_of(group).where;
}

std::uint64_t Loader::arena_offset(GroupId group) const {
  const MutexLock lock(mutex_);
  return slot_of(group).offset_bytes;
}

std::uint64_t Loader::arena_bytes() const {
  const MutexLock lock(mutex_);
  return arena_.size_bytes();
}

bool Loader::keeps_frames(GroupId group) const {
  const MutexLock lock(mutex_);
  return slot_of(group).kept != nullptr;
}

bool Loader::settled(GroupId group) const {
  const MutexLock lock(mutex_);
  return slot_of(group).settled;
}

std::byte* Loader::address(GroupId group, std::size_t position) const {
  const MutexLock lock(mutex_);
  const Slot& slot = slot_of(group);
  return slot.data == nullptr ? nullptr : slot.place().address(slot.group, position);
}

// The work that the stream holds may read pages that are about to go. The caller's own is done.
void Loader::finish_work(Stream& stream) const {
  if (&stream != &device_.caller_stream()) stream.synchronize();
}

// Windows are worth it where they are most of what is streamed: a copy into an arena whose pages
// went costs more.
void Loader::find_windows() {
  if (prefetch_ != Prefetch::kReadAhead || !device_.uses_foreign_memory()) return;
  windows_ = 0;
  std::uint64_t streamed_bytes = 0;
  std::uint64_t in_windows = 0;
  for (const auto& slot : slots_) {
    slot->group.windows.clear();
    if (slot->where != Where::kArena) continue;
    windows_ += slot->group.make_windows(sources_, kMostWindows - windows_);
    streamed_bytes += slot->size_bytes();
    in_windows += slot->group.window_bytes();
  }
  if (windows_ == 0 || in_windows >= streamed_bytes / 4 * 3) return;
  windows_ = 0;
  for (const auto& slot : slots_) slot->group.windows.clear();
}

std::uint32_t Loader::place_number(GroupId group) const {
  const MutexLock lock(mutex_);
  return slot_of(group).place_number;
}

std::uint64_t Loader::held_bytes() const {
  const MutexLock lock(mutex_);
  return held();
}

std::uint64_t Loader::held() const {
  std::uint64_t held = arena_.size_bytes() + required_.size_bytes();
  for (const auto& slot : slots_) {
    held += slot->own.size_bytes() + slot->in_source.size_bytes();
    if (slot->kept != nullptr) held += slot->kept->size_bytes();
  }
  return held;
}

void Loader::note_held() { counted_.peak_held_bytes = std::max(counted_.peak_held_bytes, held()); }

void Loader::check_unleased() const {
  const MutexLock lock(mutex_);
  check_unleased_locked();
}

void Loader::check_unleased_locked() const {
  for (const auto& slot : slots_) {
    if (slot->leases != 0) {  // guard: arranged-while-leased
      throw LeaseError("group " + std::to_string(slot->group.id) +
                       " is in use: groups find other places between forwards alone");
    }
  }
}

void Loader::arrange(const Plan& plan, ResidentUse residents) {
  MutexLock lock(mutex_);
  wait_until([&]() TS_REQUIRES(mutex_) { return !arranging_; });
  check_unleased_locked();
  begin_arranging();
  residents_ = residents;
  const Statistics counted = counted_;  // what is settled is not streamed
  std::exception_ptr error;
  try {
    leave_places(plan);
    take_places(plan);
  } catch (...) {
    error = std::current_exception();
  }
  try {
    find_windows();
    settle_residents();
  } catch (...) {
    if (!error) error = std::current_exception();
  }
  counted_ = counted;
  note_held();
  find_streamed();
  end_arranging();
  if (!streamed_.empty()) start_threads();
  if (error) std::rethrow_exception(error);
}

// What was learnt of their order stays right while they are the same.
void Loader::find_streamed() {
  std::vector<GroupId> streamed;
  for (const auto& slot : slots_) {
    // A resident that found no place may be given one in the arena later.
    const bool may_be_there = slot->where != Where::kNowhere || slot->resident;
    if (!slot->settled && may_be_there) streamed.push_back(slot->group.id);
  }
  if (streamed == streamed_) return;  // guard: order-kept
  streamed_ = std::move(streamed);
  counted_.surprises += order_.surprises();
  order_ = OrderTable(streamed_);
}

// Where groups are loaded at their use, nothing is left for the loader's own thread.
void Loader::start_threads() {
  if (prefetch_ == Prefetch::kReadAhead) {
    if (read_ahead_ == nullptr) read_ahead_ = std::make_unique<ReadAhead>(sources_);
  } else if (!thread_.joinable()) {
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  }
}

// From here on nothing is loaded and nobody is given a lease.
void Loader::begin_arranging() {
  arranging_ = true;
  try {
    quiesce();
  } catch (...) {
    end_arranging();
    throw;
  }
}

void Loader::end_arranging() {
  arranging_ = false;
  changed_.ring();
  wake_if_needed();
}

// Until nothing that is enqueued uses any place. Without the lock, which callbacks need.
void Loader::quiesce() {
  wait_until([&]() TS_REQUIRES(mutex_) { return in_flight_ == 0; });
  for (const auto& slot : slots_) slot->record_use();
  mutex_.unlock();
  std::exception_ptr error;
  try {
    drain_loads();
    for (const auto& slot : slots_) slot->last_use->synchronize();  // guard: wait-before-moving
  } catch (...) {
    error = std::current_exception();
  }
  mutex_.lock();
  if (error) std::rethrow_exception(error);
}

void Loader::move(Slot& slot, Where where, std::byte* data) {
  slot.move_to(where, data);
  ++place_moves_;
}

void Loader::leave_places(const Plan& plan) {
  for (const auto& slot : slots_) {
    slot->kept_bytes = plan.groups[slot->group.id].kept_bytes;
    if (slot->kept != nullptr && slot->kept->size_bytes() != slot->kept_bytes) {
      static_cast<void>(let_frames_go(*slot));
    }
    const bool placed =
        slot->where == Where::kPrivate || (slot->where == Where::kSource && lies_in_sources(*slot));
    const bool stays = placed && plan.groups[slot->group.id].placement == Placement::kResident;
    if (stays) continue;
    slot->settled = false;
    move(*slot, Where::kNowhere, nullptr);
    slot->own = {};
    slot->in_source.release();
  }
  if (arena_.size_bytes() != plan.arena_bytes) arena_ = {};
}

void Loader::take_places(const Plan& plan) {
  spare_arena_bytes_ = plan.spare_arena_bytes;
  std::exception_ptr error;
  const auto note = [&error] {  // the others may find room
    if (!error) error = std::current_exception();
  };
  try {
    take_arena(plan.arena_bytes);
  } catch (const BudgetError&) {
    note();
  }
  try {
    place_required();
  } catch (const BudgetError&) {
    note();
  }
  for (const auto& slot : slots_) {
    const GroupPlacement& planned = plan.groups[slot->group.id];
    slot->offset_bytes = planned.offset_bytes;
    slot->resident = planned.placement == Placement::kResident;
    const bool coded = planned.placement == Placement::kResidentCoded;
    if (coded || planned.placement == Placement::kStreamed) place_in_arena(*slot);
    const bool stays = slot->resident && slot->where == Where::kNowhere;
    try {
      if (coded) keep_frames(*slot);
      if (stays) place_resident(*slot);
    } catch (const BudgetError&) {
      note();
      if (stays) place_in_arena(*slot);
    }
  }
  if (error) std::rethrow_exception(error);
}

void Loader::take_arena(std::uint64_t size_bytes) {
  if (arena_.size_bytes() == size_bytes) return;
  arena_ = pool_.allocate(size_bytes, kGroupAlignment, "the arena of streamed weights");
}

// In one piece: most of them are small, and none ever moves.
void Loader::place_required() {
  std::uint64_t size_bytes = 0;
  std::vector<Slot*> placed;
  for (const auto& slot : slots_) {
    const bool required = slot->group.residency == Residency::kRequired;
    if (!required || slot->where != Where::kNowhere || lies_in_sources(*slot)) continue;
    placed.push_back(slot.get());
    size_bytes += slot->size_bytes();
  }
  if (placed.empty()) return;
  required_ = pool_.allocate(size_bytes, kGroupAlignment, "resident weights");
  std::byte* data = required_.data();
  for (Slot* const slot : placed) {
    move(*slot, Where::kPrivate, data);
    data += slot->size_bytes();
  }
}

void Loader::place_resident(Slot& slot) {
  const std::uint64_t size_bytes = slot.size_bytes();
  if (lies_in_sources(slot)) {
    slot.in_source = pool_.budget().reserve(size_bytes, "resident weights that are in RAM already");
    move(slot, Where::kSource, nullptr);
  } else {
    slot.own = pool_.allocate(size_bytes, kGroupAlignment, "resident weights");
    move(slot, Where::kPrivate, slot.own.data());
  }
}

// Nowhere, where it has no room.
void Loader::place_in_arena(Slot& slot) {
  const std::uint64_t size_bytes = slot.size_bytes();
  const bool fits =
      size_bytes <= arena_.size_bytes() && slot.offset_bytes <= arena_.size_bytes() - size_bytes;
  if (fits && size_bytes != 0) {
    move(slot, Where::kArena, arena_.data() + slot.offset_bytes);
  } else {
    move(slot, Where::kNowhere, nullptr);
  }
}

bool Loader::is_leased(const Slot& slot) const {
  return residents_ == ResidentUse::kLeased && slot.group.residency == Residency::kAny &&
         slot.size_bytes() != 0;
}

bool Loader::lies_in_sources(const Slot& slot) const {
  if (!device_.host_accessible() || is_leased(slot)) return false;
  return std::ranges::all_of(slot.group.tensors,
                             [&](TensorId tensor) { return sources_.address(tensor) != nullptr; });
}

// All of them are under way at once, so that the files of the next are read while one is copied.
void Loader::settle_residents() {
  std::exception_ptr error;
  const auto unsettle = [&error](Slot& slot) {
    slot.settled = false;
    if (!error) error = std::current_exception();
  };
  std::vector<Slot*> loading;
  std::vector<Issue> issues;
  for (const auto& slot : slots_) {
    slot->settled =
        !is_leased(*slot) && (slot->where == Where::kPrivate || slot->where == Where::kSource);
    const bool empty = slot->size_bytes() == 0;
    if (!slot->settled || slot->where == Where::kSource || empty) continue;
    try {
      if (slot->content != Content::kReady) issues.push_back(issue(*slot));
      loading.push_back(slot.get());
    } catch (...) {
      unsettle(*slot);
    }
  }
  enqueue_settled(issues);
  for (Slot* const slot : loading) {
    try {
      finish_settled(*slot);
    } catch (...) {
      unsettle(*slot);
    }
  }
  if (error) std::rethrow_exception(error);
}

void Loader::enqueue_settled(std::span<Issue> issues) {
  const bool at_use = prefetch_ == Prefetch::kReadAhead;
  for (std::size_t i = 0; i < issues.size(); ++i) {
    const std::span<const Issue> later = issues.subspan(i + 1);
    for (const Issue& next : later.first(std::min(later.size(), kLookAhead))) {
      if (!add_disk_reads(*next.load, issues[i].next)) break;
    }
    Stream& stream = at_use ? device_.caller_stream() : stream_for(*issues[i].load);
    enqueue_unlocked(stream, slot_of(issues[i].load->group()), issues[i]);
    issues[i] = {};  // its readers go as soon as it is over
  }
}

void Loader::finish_settled(Slot& slot) {
  wait_until([&] { return slot.content != Content::kIssued; });
  if (slot.content == Content::kFailed) std::rethrow_exception(slot.error);
  device_.caller_stream().set_access(slot.data, slot.size_bytes(), Access::kReadWrite);
}

std::vector<GroupId> Loader::uses_beside_cycle() const {
  const MutexLock lock(mutex_);
  if (streamed_.size() > kMostGroupsToArrange) return {};
  std::vector<GroupId> uses = order_.upcoming(kUsesToArrangeFor * streamed_.size());
  if (!leaves_out_none(uses, streamed_) || is_cycle(uses, streamed_.size())) uses.clear();
  return uses;
}

void Loader::move_in_arena(std::span<const std::uint64_t> offsets) {
  const MutexLock lock(mutex_);
  const auto leased = [](const auto& slot) { return slot->leases != 0; };
  if (arranging_ || std::ranges::any_of(slots_, leased)) return;
  begin_arranging();
  for (const auto& slot : slots_) {
    const std::uint64_t offset_bytes = offsets[slot->group.id];
    if (slot->where != Where::kArena || slot->offset_bytes == offset_bytes) continue;
    slot->offset_bytes = offset_bytes;
    place_in_arena(*slot);
  }
  end_arranging();
}

bool Loader::leased_overlap(const Slot& slot) const {
  return std::any_of(streamed_.begin(), streamed_.end(), [&](GroupId group) {
    const Slot& other = slot_of(group);
    return &other != &slot && other.leases != 0 && slot.overlaps(other);
  });
}

}  // namespace tensorstream

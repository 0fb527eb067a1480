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

/// How often a thread that waits for leases asks whether it is to go on.
constexpr std::chrono::milliseconds kLeaseCheck{20};

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

bool Loader::read_settled(GroupId group, std::size_t position,
                          const std::function<void(const std::byte*)>& read) {
  const std::byte* bytes = nullptr;
  {
    const MutexLock lock(mutex_);
    wait_until([&]() TS_REQUIRES(mutex_) { return !arranging_; });  // guard: read-while-arranging
    const Slot& slot = slot_of(group);
    if (!slot.settled || slot.data == nullptr) return false;
    bytes = slot.place().address(slot.group, position);
    ++readers_;
  }
  std::exception_ptr error;
  try {
    read(bytes);
  } catch (...) {
    error = std::current_exception();
  }
  const MutexLock lock(mutex_);
  if (--readers_ == 0 && arranging_) changed_.ring();
  if (error) std::rethrow_exception(error);
  return true;
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

bool Loader::lacks_places() const {
  const MutexLock lock(mutex_);
  return std::ranges::any_of(slots_, [](const auto& slot) { return slot->lacks_place(); });
}

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

bool Loader::is_leased() const {
  const MutexLock lock(mutex_);
  return std::ranges::any_of(slots_, [](const auto& slot) { return slot->leases != 0; });
}

void Loader::wait_unleased(Clock::time_point until, const std::function<void()>& check) {
  for (;;) {
    const std::uint64_t rung = unleased_.count();
    if (!is_leased()) return;
    if (Clock::now() >= until) check_unleased();
    if (check) check();
    static_cast<void>(unleased_.wait_for(rung, kLeaseCheck));
  }
}

void Loader::arrange(const Plan& plan, ResidentUse residents) {
  const MutexLock lock(mutex_);
  wait_until([&]() TS_REQUIRES(mutex_) { return !arranging_; });
  check_unleased_locked();
  while_arranging([&]() TS_REQUIRES(mutex_) {
    std::exception_ptr error;
    const auto attempt = [&](const auto& step) TS_REQUIRES(mutex_) {
      try {
        step();
      } catch (...) {  // the rest is to work
        if (!error) error = std::current_exception();
      }
    };
    residents_ = residents;
    attempt([&]() TS_REQUIRES(mutex_) {
      leave_places(plan);
      take_places(plan);
    });
    attempt([&]() TS_REQUIRES(mutex_) { find_windows(); });
    attempt([&]() TS_REQUIRES(mutex_) { settle_residents(); });
    attempt([&]() TS_REQUIRES(mutex_) { find_streamed(); });
    if (!streamed_.empty()) attempt([&]() TS_REQUIRES(mutex_) { start_threads(); });
    if (error) std::rethrow_exception(error);
  });
}

// What was expected of others says nothing of these: without memory for these, nothing is.
void Loader::find_streamed() {
  try {
    std::vector<GroupId> streamed;
    for (const auto& slot : slots_) {
      // A resident that found no place may be given one in the arena later.
      const bool may_be_there = slot->where != Where::kNowhere || slot->resident;
      if (!slot->settled && may_be_there) streamed.push_back(slot->group.id);
    }
    if (streamed == streamed_) return;  // guard: order-kept
    expect_order(std::move(streamed));
  } catch (...) {
    expect_order({});
    throw;
  }
}

void Loader::expect_order(std::vector<GroupId> streamed) {
  OrderTable order(streamed);
  counted_.surprises += order_.surprises();
  order_ = std::move(order);
  streamed_ = std::move(streamed);
}

// Where groups are loaded at their use, nothing is left for the loader's own thread.
void Loader::start_threads() {
  if (prefetch_ == Prefetch::kReadAhead) {
    if (read_ahead_ == nullptr) read_ahead_ = std::make_unique<ReadAhead>(sources_);
  } else if (!thread_.joinable()) {
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  }
}

// Meanwhile nothing is loaded and nobody is given a lease.
void Loader::while_arranging(const std::function<void()>& move) {
  std::exception_ptr error;
  arranging_ = true;
  try {
    quiesce();
    move();
  } catch (...) {
    error = std::current_exception();
  }
  note_held();
  arranging_ = false;
  changed_.ring();
  wake_if_needed();
  if (error) std::rethrow_exception(error);
}

// Until nothing that is enqueued uses any place. Without the lock, which callbacks need.
void Loader::quiesce() {
  wait_until([&]() TS_REQUIRES(mutex_) { return in_flight_ == 0; });
  wait_until([&]() TS_REQUIRES(mutex_) { return readers_ == 0; });  // guard: moved-while-read
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

bool Loader::gives_leases(const Slot& slot) const {
  return residents_ == ResidentUse::kLeased && slot.group.residency == Residency::kAny &&
         slot.size_bytes() != 0;
}

bool Loader::lies_in_sources(const Slot& slot) const {
  if (!device_.host_accessible() || gives_leases(slot)) return false;
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
  const auto has_its_bytes = [](const Slot& slot) {
    return slot.where == Where::kSource || slot.size_bytes() == 0;
  };
  for (const auto& slot : slots_) {
    slot->settled = !gives_leases(*slot) && slot->where != Where::kNowhere && has_its_bytes(*slot);
  }
  std::vector<Slot*> loading;
  std::vector<Issue> issues;
  loading.reserve(slots_.size());
  issues.reserve(slots_.size());
  for (const auto& slot : slots_) {
    if (gives_leases(*slot) || slot->where != Where::kPrivate || has_its_bytes(*slot)) continue;
    slot->settled = true;
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
    look_ahead(issues[i], issues.subspan(i + 1));
    Stream& stream = at_use ? device_.caller_stream() : stream_for(*issues[i].load);
    enqueue_unlocked(stream, slot_of(issues[i].load->group()), issues[i]);
    issues[i] = {};  // its readers go as soon as it is over
  }
}

// Each of `later` is loaded whether its files are read ahead or not: settled groups have no other
// load.
void Loader::look_ahead(Issue& issue, std::span<const Issue> later) const noexcept {
  try {
    for (const Issue& next : later.first(std::min(later.size(), kLookAhead))) {
      if (!add_disk_reads(*next.load, issue.next)) return;
    }
  } catch (...) {  // no memory for it
    issue.next.clear();
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
  while_arranging([&]() TS_REQUIRES(mutex_) {
    for (const auto& slot : slots_) {
      const std::uint64_t offset_bytes = offsets[slot->group.id];
      if (slot->where != Where::kArena || slot->offset_bytes == offset_bytes) continue;
      slot->offset_bytes = offset_bytes;
      place_in_arena(*slot);
    }
  });
}

bool Loader::leased_overlap(const Slot& slot) const {
  return std::ranges::any_of(slots_, [&](const auto& other) {
    return other.get() != &slot && other->leases != 0 && slot.overlaps(*other);
  });
}

}  // namespace tensorstream

// Residents that give way and come back, and frames that stay on the device.
#include <algorithm>
#include <utility>

#include "engine/loader.h"
#include "tensorstream/error.h"

namespace tensorstream {

// In a cyclic order what was used last is needed last. Of those, one whose work is done comes
// first: nobody has to wait for it.
Loader::Slot* Loader::next_to_give_way() {
  std::vector<Slot*> candidates;
  for (const auto& slot : slots_) {
    if (slot->in_flight == 0 && may_give_way(*slot)) candidates.push_back(slot.get());
  }
  std::ranges::stable_sort(candidates, std::ranges::greater{}, &Slot::last_used);
  const auto done = std::ranges::find_if(candidates, [](const Slot* slot) {
    if (slot->kept != nullptr) return slot->loaded->complete();
    // Of one that is not recorded nobody knows; those after it are needed sooner.
    return slot->unrecorded != nullptr || slot->last_use->complete();
  });
  if (done != candidates.end()) return *done;
  return candidates.empty() ? nullptr : candidates.front();
}

// Frames that stay are read by loads alone, whoever leases what they were decoded to.
bool Loader::may_give_way(const Slot& slot) const {
  if (slot.kept != nullptr) return true;
  const std::uint64_t room = arena_.size_bytes() != 0 ? arena_.size_bytes() : spare_arena_bytes_;
  if (slot.leases != 0) {  // guard: give-way-while-leased
    return false;
  }
  return slot.where == Where::kPrivate && !slot.settled && slot.own.size_bytes() != 0 &&
         slot.size_bytes() <= room;
}

std::uint64_t Loader::give_way(std::uint64_t wanted_bytes) {
  std::uint64_t freed = 0;
  for (;;) {
    Block leaving;
    const Slot* left = nullptr;
    bool frames = false;
    bool told = true;
    {
      const MutexLock lock(mutex_);
      if (arranging_) return freed;
      const std::uint64_t rung = changed_.count();
      note_finished();
      const std::uint64_t arena_bytes = arena_.size_bytes() == 0 ? spare_arena_bytes_ : 0;
      Slot* const next = freed >= wanted_bytes + arena_bytes ? nullptr : next_to_give_way();
      if (next == nullptr) {
        // What is on its way to a resident arrives soon, and then it may go.
        const bool arriving =
            freed < wanted_bytes + arena_bytes &&
            std::ranges::any_of(
                slots_, [&](const auto& slot) TS_REQUIRES(mutex_) { return may_give_way(*slot); });
        if (arriving && wait_for_change(rung)) continue;
        if (freed != 0 && arena_bytes != 0) make_spare_arena();
        return freed - std::min(freed, arena_bytes);
      }
      frames = next->kept != nullptr;
      if (!frames) next->record_use();
      told = next->told;
      leaving = frames ? let_frames_go(*next) : std::move(next->own);
      ++counted_.gave_way;
      if (!frames) place_in_arena(*next);
      left = next;
    }
    if (told) {
      left->loaded->synchronize();
    } else {
      drain_loads();  // one that failed midway
    }
    if (!frames) left->last_use->synchronize();  // guard: wait-before-giving-way
    freed += leaving.size_bytes();
  }
}

// Where a model fitted whole there is no arena before the first resident gives way.
void Loader::make_spare_arena() {
  try {
    arena_ = pool_.allocate(spare_arena_bytes_, kGroupAlignment, "the arena of streamed weights");
  } catch (const BudgetError&) {  // what gave way is read where it is, until an arena can be had
    return;
  }
  for (const auto& slot : slots_) {
    if (slot->resident && slot->where == Where::kNowhere) place_in_arena(*slot);
  }
  note_held();
}

std::uint64_t Loader::take_back(std::uint64_t spared_bytes) {
  const MutexLock lock(mutex_);
  if (arranging_) return 0;
  std::uint64_t taken = 0;
  while_arranging([&]() TS_REQUIRES(mutex_) {
    // Frames first: for each byte of the budget they keep more from crossing the link.
    for (const auto& slot : slots_) taken += try_keep_frames(*slot, spared_bytes);
    for (const auto& slot : slots_) taken += try_take_back(*slot, spared_bytes);
  });
  return taken;
}

bool Loader::has_room(std::uint64_t size_bytes, std::uint64_t spared_bytes) const {
  const std::uint64_t free_bytes = pool_.budget().free_bytes();
  return free_bytes >= size_bytes && free_bytes - size_bytes >= spared_bytes;
}

// Returns the bytes that it took.
std::uint64_t Loader::try_take_back(Slot& slot, std::uint64_t spared_bytes) {
  const std::uint64_t size_bytes = slot.size_bytes();
  if (!slot.gave_way() || slot.leases != 0) return 0;
  // Given back while others were waited for: where it moves to, nothing waits for its old place.
  if (!slot.last_use->complete() || !has_room(size_bytes, spared_bytes)) return 0;
  Block own;
  try {
    own = pool_.allocate(size_bytes, kGroupAlignment, "resident weights");
  } catch (const BudgetError&) {  // the device has it no more
    return 0;
  }
  slot.own = std::move(own);
  move(slot, Where::kPrivate, slot.own.data());
  return slot.own.size_bytes();
}

std::uint64_t Loader::try_keep_frames(Slot& slot, std::uint64_t spared_bytes) {
  if (slot.kept != nullptr || slot.kept_bytes == 0) return 0;
  if (!has_room(slot.kept_bytes, spared_bytes)) return 0;
  try {
    keep_frames(slot);
  } catch (const BudgetError&) {  // the device has it no more
    return 0;
  }
  return slot.kept->size_bytes();
}

// They are brought by the group's next load.
void Loader::keep_frames(Slot& slot) {
  if (slot.kept != nullptr) return;
  slot.kept = std::make_unique<KeptFrames>(
      pool_.allocate(slot.kept_bytes, kGroupAlignment, "resident weights, coded"));
  ++kept_groups_;
}

// No load that is under way uses them.
Block Loader::let_frames_go(Slot& slot) {
  Block memory = slot.kept->release();
  slot.kept = nullptr;
  slot.at_hand = false;
  --kept_groups_;
  return memory;
}

// All that was enqueued to load groups.
void Loader::drain_loads() const {
  copy_stream_->synchronize();
  if (ring_ != nullptr) ring_->synchronize();
  if (decode_stream_ != nullptr) decode_stream_->synchronize();
}

}  // namespace tensorstream

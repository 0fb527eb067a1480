#include "engine/loader_slot.h"

#include <span>

#include "platform/mapping.h"

namespace tensorstream {

GroupPlace LoaderSlot::place() const noexcept { return {data, where == Where::kArena, kept.get()}; }

bool LoaderSlot::gave_way() const noexcept {
  return resident && (where == Where::kArena || where == Where::kNowhere);
}

bool LoaderSlot::lacks_place() const noexcept {
  return where == Where::kNowhere && group.residency == Residency::kAny && size_bytes() != 0;
}

bool LoaderSlot::usable() const noexcept {
  if (content != Content::kIssued) return content == Content::kReady;
  if (load->can_fail()) return false;  // guard: wait-for-reads
  // Its event is recorded last, by whoever loads it.
  if (!enqueued) return false;  // guard: wait-for-other-caller
  return true;
}

void LoaderSlot::move_to(Where there, std::byte* memory) noexcept {
  where = there;
  data = memory;
  ++place_number;
  content = Content::kEmpty;
  load = nullptr;
  error = nullptr;
}

void LoaderSlot::note_end(const Load& done, const std::exception_ptr& failure) {
  if (load.get() != &done) return;  // guard: superseded-load
  content = Content::kReady;
  if (failure) content = Content::kFailed;  // guard: load-failed
  error = failure;
}

void LoaderSlot::note_failure() noexcept {
  content = Content::kFailed;
  error = std::current_exception();
}

void LoaderSlot::record_use() {
  if (unrecorded == nullptr) return;
  unrecorded->record(*last_use);  // guard: recorded-later
  unrecorded = nullptr;
}

void LoaderSlot::wait_for_use(Stream& stream) {
  if (after_use == &stream) return;
  stream.wait(*last_use);
  after_use = &stream;
}

void LoaderSlot::wait_for_filling(Stream& stream) const {
  if (filled_on == nullptr || filled_on == &stream) return;
  if (!told) filled_on->record(*loaded);
  stream.wait(*loaded);  // guard: loads-in-turn
}

std::exception_ptr LoaderSlot::close_windows() noexcept {
  if (!place().uses_windows || group.windows.empty()) return nullptr;
  if (content != Content::kFailed) content = Content::kEmpty;
  return group.close_windows();
}

void LoaderSlot::make_room_for_windows(Stream& stream) const {
  if (!place().uses_windows || group.windows.empty()) return;
  const std::span<std::byte> pages(data, size_bytes());
  stream.run([pages] { discard_pages(pages); });  // guard: windows-within-the-arena
}

}  // namespace tensorstream

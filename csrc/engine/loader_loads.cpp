// How the loader brings a group to its place.
#include <algorithm>
#include <utility>

#include "engine/loader.h"
#include "platform/openmp.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

// In the order of no stream: first all that this one holds is over, with the last use of the place.
void read_to_device(Stream& stream, LoaderSlot& slot, Load& load) {
  stream.record(*slot.loaded);
  slot.loaded->synchronize();  // guard: wait-for-reader-of-device-read
  load.read();
}

}  // namespace

// On the copy stream, or where the device decodes on the ring's, which then does all that touches
// the place: what crosses the link need not wait for it. What is read through staging is read by
// this thread, which must not hold the lock then: others would wait for a disk, and callbacks of
// the stream need it. Nor while it makes a driver's many calls, which may fill the driver's queue.
// What turns out to be at hand is decoded as decode_at_hand() does it: no count tells of it, so
// frames that give way meanwhile would go from under it.
void Loader::load_apart(GroupId group) {
  Slot& slot = slot_of(group);
  try {
    Issue ready = issue(slot);
    const bool on_gpu = staging_ != nullptr;
    if (on_gpu && ready.load->has_reads()) ready.next = next_disk_reads(group);
    bool apart = on_gpu || !ready.load->coded().empty();
    if (ready.load->only_decodes()) apart = false;  // guard: decode-with-the-lock
    if (apart) {
      enqueuing_.assign(ready.overwritten.begin(), ready.overwritten.end());
      enqueuing_.push_back(&slot);
      enqueue_unlocked(stream_for(*ready.load), slot, ready);
    } else {
      enqueue_locked(slot, ready);
    }
  } catch (...) {  // whoever asks for the group gets it
    slot.note_failure();
  }
  enqueuing_.clear();
}

void Loader::decode_at_hand() noexcept {
  if (kept_groups_ == 0) return;
  while (const std::optional<GroupId> group = next(Way::kDecode)) {
    Slot& slot = slot_of(*group);
    try {
      enqueue_locked(slot, issue(slot));
    } catch (...) {  // whoever asks for the group gets it
      slot.note_failure();
    }
    changed_.ring();
  }
}

void Loader::enqueue_locked(Slot& slot, const Issue& issue) {
  enqueue(stream_for(*issue.load), slot, issue);
  note_issued(slot, issue.load);
  note_enqueued(slot, issue.load);
}

// Until the event is recorded, waiting for it says nothing: acquire() waits for that.
void Loader::enqueue_unlocked(Stream& stream, Slot& slot, const Issue& issue) {
  note_issued(slot, issue.load);
  issue.load->being_enqueued = true;  // guard: noted-before-it-is-over
  mutex_.unlock();
  std::exception_ptr error;
  try {
    enqueue(stream, slot, issue);
  } catch (...) {  // acquire() raises it
    error = std::current_exception();
  }
  // On a host all of it is over by now: readers end here, not under the lock.
  if (error && staging_ == nullptr) issue.load->end();
  if (error) issue.load->give_up();
  mutex_.lock();
  const bool was_awaited = std::exchange(issue.load->being_enqueued, false);
  if (!error) {
    note_enqueued(slot, issue.load);
    if (!was_awaited || !issue.load->has_ended) return;
    note_over(*issue.load);
    changed_.ring();
    return;
  }
  if (!issue.load->only_decodes()) {
    --slot.in_flight;
    --in_flight_;
  }
  slot.note_end(*issue.load, error);
  changed_.ring();
}

void Loader::note_enqueued(Slot& slot, const std::shared_ptr<Load>& load) {
  if (slot.load != load) return;  // its sources have changed meanwhile
  slot.enqueued = true;
  slot.at_hand = load->stays();
  if (!load->only_decodes()) return;
  load->end();  // no callback tells of it
  ++counted_.loads;
  counted_.kept_decoded_bytes += load->kept_decoded_bytes();
}

Loader::Issue Loader::issue(Slot& slot) {
  if (read_ahead_ != nullptr) read_ahead_->drop(slot.group.id);
  if (slot.group.drop_lost_windows()) {
    ++slot.place_number;
    ++place_moves_;
  }
  slot.record_use();
  const auto reads = staging_ != nullptr ? Load::Reads::kStaged : Load::Reads::kInPlace;
  const std::uint64_t frame_room_bytes = staged_ != nullptr ? staged_->frame_room_bytes() : 0;
  Issue result{std::make_shared<Load>(slot.group.id, reads, frame_room_bytes), {}, {}, {}};
  slot.place().add_to(*result.load, slot.group, sources_, options_.piece_bytes);
  evict_overlapping(slot, result);
  return result;
}

void Loader::evict_overlapping(const Slot& slot, Issue& issue) {
  for (const auto& other : slots_) {
    if (other.get() == &slot || !slot.overlaps(*other)) continue;
    issue.overwritten.push_back(other.get());
    if (other->on_device()) {  // guard: eviction
      issue.stale.push_back(other.get());
      other->content = Content::kEmpty;
      other->load = nullptr;
    }
  }
}

void Loader::note_issued(Slot& slot, const std::shared_ptr<Load>& load) {
  slot.load = load;
  slot.content = Content::kIssued;
  slot.enqueued = false;
  if (load->only_decodes()) return;
  ++slot.in_flight;
  ++in_flight_;
}

Stream& Loader::stream_for(const Load& load) const {
  if (load.coded().empty() && !load.reads_frames()) return *copy_stream_;
  return load.only_decodes() ? *decode_stream_ : ring_->stream();
}

// A place may be filled on several streams, also by loads that nobody used, or that failed midway:
// then nobody recorded the end of what is under way.
void Loader::take_turn(Stream& stream, Slot& slot, const Issue& issue) {
  if (ring_ != nullptr) {
    for (const Slot* other : issue.overwritten) other->wait_for_filling(stream);
    slot.wait_for_filling(stream);
  }
  slot.filled_on = &stream;
  slot.told = false;
}

void Loader::enqueue(Stream& stream, Slot& slot, const Issue& issue) {
  const std::shared_ptr<Load>& load = issue.load;
  take_turn(stream, slot, issue);
  for (Slot* other : issue.overwritten) {
    other->wait_for_use(stream);  // guard: wait-for-last-reader
  }
  // With a ring, what of their places is not in this one may be filled on another stream by then.
  for (const Slot* other : issue.stale) {
    if (ring_ == nullptr) stream.poison(other->data, other->size_bytes());
  }
  slot.wait_for_use(stream);  // guard: wait-for-own-reader
  slot.make_room_for_windows(stream);
  std::byte* const data = slot.data;
  stream.set_access(data, slot.size_bytes(), Access::kReadWrite);
  stream.poison(data, slot.size_bytes());
  load->start();
  for (const Load::Copy& copy : load->copies()) {
    stream.copy_to_device(copy.target.data(), copy.source, copy.target.size());
  }
  if (load->only_decodes()) {
    ring_->decode_kept(stream, load->coded());
  } else if (ring_ != nullptr) {
    ring_->decode(*copy_stream_, load->coded());
  }
  if (load->reads_to_device()) read_to_device(stream, slot, *load);
  if (load->has_reads()) enqueue_reads(stream, issue);
  stream.set_access(data, slot.size_bytes(), Access::kNone);
  stream.record(*slot.loaded);
  slot.told = true;
  if (load->only_decodes()) return;  // who leases it waits for the event
  // A callback holds its stream up: on a GPU the next copy goes on meanwhile.
  Stream& after = done_stream_ != nullptr ? *done_stream_ : stream;
  if (done_stream_ != nullptr) after.wait(*slot.loaded);
  after.run([this, load] { finish(load); });
}

void Loader::enqueue_reads(Stream& stream, const Issue& issue) {
  const std::shared_ptr<Load>& load = issue.load;
  if (staged_ != nullptr) {
    staged_->send(*load, stream, issue.next);
    load->end_device_reads();  // guard: device-readers-end-outside-callbacks
    return;
  }
  const bool shared = &stream != copy_stream_.get() && load->is_large();
  stream.run([load, shared] {
    if (shared) {
      run_on_team([&] { load->read(); });
    } else {
      load->read();
    }
  });
}

}  // namespace tensorstream

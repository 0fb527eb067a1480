// LoaderSlot: one group as the loader has it: its place, what is in it, and who uses it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>

#include "device/device.h"
#include "engine/kept_frames.h"
#include "engine/load.h"
#include "engine/loaded_group.h"
#include "memory/pool.h"

namespace tensorstream {

/// Where a group's bytes are while it is used.
enum class Where {
  /// Nowhere: it is read on demand, or its place could not be had.
  kNowhere,
  /// In the arena, which it shares.
  kArena,
  /// In memory of its own.
  kPrivate,
  /// Where its sources, all of them RAM of a device that is the host, have them.
  kSource,
};

/// Belongs to the loader, whose lock guards it.
struct LoaderSlot {
  enum class Content { kEmpty, kQueued, kIssued, kReady, kFailed };
  /// What brings a group.
  enum class Way {
    /// The link or a reader: the loader's thread.
    kLink,
    /// A decoding of frames that stay on the device: whoever finds its place free. It is a few
    /// calls of the driver, and to wake a thread for them costs more and makes the caller wait.
    kDecode,
  };

  LoadedGroup group;
  Where where = Where::kNowhere;
  std::uint64_t offset_bytes = 0;    // in the arena, also of a resident that may give way
  std::byte* data = nullptr;         // start of its place
  Block own;                         // kPrivate; empty for one that every plan has resident
  Reservation in_source;             // kSource
  std::unique_ptr<KeptFrames> kept;  // null where its frames do not stay on the device
  std::uint64_t kept_bytes = 0;      // of `kept` by the plan: it comes back after it gave way
  std::uint32_t place_number = 0;
  bool resident = false;        // by the plan: it comes back after it gave way
  bool settled = false;         // in its place for as long as the plan holds
  std::uint64_t last_used = 0;  // a number that grows with each lease that ends
  std::unique_ptr<Event> loaded;
  std::unique_ptr<Event> last_use;
  std::unique_ptr<Event> written;       // the last write by the device to the group's source
  const Stream* last_stream = nullptr;  // that `last_use` tells of, or that waited; only compared
  Stream* unrecorded = nullptr;         // one that lasts, whose last use `last_use` knows not yet
  Content content = Content::kEmpty;
  bool enqueued = false;        // all of what is issued: `loaded` tells its end
  bool at_hand = false;         // all of it is in `kept`: a load crosses no link
  std::uint32_t in_flight = 0;  // loads over the link into any of its places that are not done
  std::uint32_t leases = 0;
  std::uint32_t waiting = 0;   // of the leases, those whose acquire() has not returned yet
  std::shared_ptr<Load> load;  // the one that `content` speaks of; shared with callbacks
  std::exception_ptr error;
  // Of who enqueues into its place: with the lock, or where there is a ring while it is said to be
  // filled.
  Stream* filled_on = nullptr;        // the stream that the last load filled its place on
  bool told = true;                   // `loaded` tells of the end of that
  const Stream* after_use = nullptr;  // one that has waited for `last_use`; compared, never used

  std::uint64_t size_bytes() const noexcept { return group.layout.size_bytes; }
  GroupPlace place() const noexcept;
  bool overlaps(const LoaderSlot& other) const noexcept {
    return where == Where::kArena && other.where == Where::kArena &&
           offset_bytes < other.offset_bytes + other.size_bytes() &&
           other.offset_bytes < offset_bytes + size_bytes();
  }
  /// By the plan it is in its own memory, and is not.
  bool gave_way() const noexcept;
  /// It has none, in the arena either: the device had no memory for it.
  bool lacks_place() const noexcept;
  Way way() const noexcept { return at_hand ? Way::kDecode : Way::kLink; }
  /// What was asked for is there, or on its way.
  bool on_device() const noexcept {
    return content == Content::kIssued || content == Content::kReady;
  }
  /// Its bytes may be used in the order of streams, which says all that is to be waited for.
  bool usable() const noexcept;

  /// The place is another from here on, and empty.
  void move_to(Where there, std::byte* memory) noexcept;
  /// Takes what became of `done`, unless another load was begun since.
  void note_end(const Load& done, const std::exception_ptr& failure);
  /// No load can be had: whoever asks for the group gets the exception that is handled now.
  void note_failure() noexcept;

  /// Has `last_use` tell of the last use.
  void record_use();
  /// Has `stream` come after the last use. A place is that of many groups, each call of the driver
  /// costs a microsecond or more, and all of them share its lock with the thread that computes.
  /// What a stream has waited for once, all of its later work comes after, until the next use.
  void wait_for_use(Stream& stream);
  /// Has `stream` come after the last load into the place.
  void wait_for_filling(Stream& stream) const;

  /// Lets go of the pages that the last use had in windows; the group is not on the device then.
  /// An IoError where they changed meanwhile.
  [[nodiscard]] std::exception_ptr close_windows() noexcept;
  /// Pages in windows stand for a part of the place: what was copied there before goes, so that
  /// both take no more than the arena. In the stream's order, behind the last use.
  void make_room_for_windows(Stream& stream) const;
};

}  // namespace tensorstream

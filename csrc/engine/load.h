// Load: the bytes of one group on their way into its place.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "device/device.h"
#include "engine/decode_ring.h"
#include "engine/encoded_home.h"
#include "engine/source_table.h"
#include "engine/staged_reader.h"
#include "io/pinned_file.h"
#include "tensorstream/plan.h"

namespace tensorstream {

class FileWindow;
class KeptFrames;

/// One load under way: pieces that the device copies from RAM, batches of frames that it copies and
/// decodes, and pieces that are read. Belongs to the thread that makes it until it is enqueued;
/// from then on thread-safe.
class Load {
 public:
  /// Bytes of RAM for the device to copy.
  struct Copy {
    const std::byte* source = nullptr;
    std::span<std::byte> target;
  };

  /// Who moves the pieces that are not copied from pinned memory.
  enum class Reads {
    /// Threads of the host, into the device's memory, which is theirs.
    kInPlace,
    /// A StagedReader.
    kStaged,
  };

  /// Of sources that have frames up to `frame_room_bytes` of these are read at once, for the device
  /// to decode; none where that is 0.
  Load(GroupId group, Reads reads, std::uint64_t frame_room_bytes = 0)
      : group_(group), how_(reads), frame_room_bytes_(frame_room_bytes) {}

  /// Adds the bytes of an extent, in pieces of at most `piece_bytes`, and keeps its reader alive.
  /// What lies behind the extent before it in the source as it does in the place is copied with
  /// that, and with the bytes between them, which are of no tensor.
  void add(const BoundExtent& extent, std::byte* target, std::uint64_t piece_bytes);

  /// As add(), but all of it is read, from RAM too.
  void add_read(const BoundExtent& extent, std::byte* target);

  /// Adds an extent that shows in `window`, open, which outlives the load: its pages are brought.
  void add_window(const BoundExtent& extent, const FileWindow& window);

  /// Adds the tensors that `extents`, each a whole tensor in `home`, are: the frames that make
  /// them, for the device to decode to where they lie in the place at `target`. Batches that `kept`
  /// has room for (null: none) stay there.
  void add_frames(const EncodedHome& home, std::span<const BoundExtent> extents, std::byte* target,
                  KeptFrames* kept);

  GroupId group() const noexcept { return group_; }
  /// What is moved, from RAM and from disk, and what that is as weights.
  std::uint64_t ram_bytes() const noexcept { return ram_bytes_; }
  std::uint64_t disk_bytes() const noexcept { return disk_bytes_; }
  std::uint64_t decoded_bytes() const noexcept { return decoded_bytes_; }
  /// Weights that are decoded from device memory, where their frames stay.
  std::uint64_t kept_decoded_bytes() const noexcept { return kept_decoded_bytes_; }
  const std::vector<Copy>& copies() const noexcept { return copies_; }
  const std::vector<CodedCopy>& coded() const noexcept { return coded_; }
  /// True where some piece is read, and not copied.
  bool has_reads() const noexcept { return !reads_.empty(); }
  /// True where it may turn out at its end that it failed: bytes are read, or copied from files.
  bool can_fail() const noexcept { return has_reads() || is_held_; }
  /// True where some of it is read straight to the device: of Reads::kStaged, what its reader can.
  bool reads_to_device() const noexcept { return reads_to_device_; }
  /// True where some of it is read as frames, which the device decodes.
  bool reads_frames() const noexcept { return reads_frames_; }
  /// True where nothing has to come to the device: all of it is decoded from there.
  bool only_decodes() const noexcept { return !coded_.empty() && !crosses_link_; }
  /// True where all of it stays on the device once this load is enqueued.
  bool stays() const noexcept;
  /// True where reading is worth several threads.
  bool is_large() const noexcept;

  void start() { started_ = Clock::now(); }
  Clock::time_point started() const noexcept { return started_; }
  /// Reads pieces that nobody has taken yet, until none is left or one fails. Several threads may
  /// share the work. Of Reads::kStaged those that go straight to the device, whose memory is free
  /// by then.
  void read() noexcept;
  /// The others of Reads::kStaged: what goes through a ring of such pieces. They use the load's
  /// readers.
  std::vector<StagedRead> staged_reads(std::uint64_t piece_bytes) const;
  /// Notes that reading failed, unless something else did before.
  void fail(std::exception_ptr error) noexcept;
  /// What failed first; null where nothing did. Valid once every read() has returned.
  std::exception_ptr error() const;
  /// What is read straight to the device is there, or failed, and all reads were begun: lets those
  /// readers go, which may call the device then, as callbacks of streams must not.
  void end_device_reads();
  /// It was not enqueued, or not all of it: nobody uses what it copied.
  void give_up() { holds_.clear(); }
  /// What it was for is over: lets the readers go, and fails where a file that was copied from has
  /// changed.
  void end() noexcept;
  Clock::time_point ended() const noexcept { return ended_; }
  /// Belongs to FinishedLoads.
  std::shared_ptr<Load> next_finished;
  // These belong to the loader, whose lock guards them.
  bool being_enqueued = false;  // by a thread that has not noted yet that it is
  bool has_ended = false;       // its callback told of it

 private:
  struct Read {
    Reader* reader = nullptr;            // one of extents_
    const FileWindow* window = nullptr;  // in place of it
    std::uint64_t offset_bytes = 0;      // in the one or the other
    std::span<std::byte> target;
    std::optional<FrameSpan> frames{};  // which decode to it, on the device

    PendingRead begin(Reads how) const;
  };
  /// Whether the reader brings its bytes to the device itself.
  bool is_to_device(const Reader& reader) const noexcept {
    return how_ == Reads::kStaged && reader.reads_to_device();
  }

  /// Whether the device copies from the file that it reads.
  bool is_pinned(const Reader& reader) const noexcept {
    return how_ == Reads::kStaged && reader.pinned_file() != nullptr;
  }
  /// What the device copies by itself, at most, from here on; empty where the bytes are to be read.
  std::span<const std::byte> source_of(const BoundExtent& extent, std::uint64_t offset_bytes);
  /// Whether `file` may be copied from until this ends.
  bool holds(PinnedFile& file);
  /// Makes the last copy reach up to `extent`, where copies of both can be one; false elsewhere.
  bool bridge_gap(const BoundExtent& extent, const std::byte* target, std::uint64_t piece_bytes);
  /// The frames that decode to what begins at `target`, where the device is to decode them.
  std::optional<FrameSpan> frames_at(const BoundExtent& extent, std::uint64_t done_bytes,
                                     const std::byte* target) const;
  void keep(const BoundExtent& extent);
  void add_read(Reader& reader, std::uint64_t offset_bytes, std::span<std::byte> target);

  // Constant from the moment that it is enqueued.
  const GroupId group_;
  const Reads how_;
  const std::uint64_t frame_room_bytes_;
  std::vector<BoundExtent> extents_;
  std::vector<PinnedFile::Hold> holds_;  // of files of these
  bool is_held_ = false;
  std::vector<Copy> copies_;
  std::vector<CodedCopy> coded_;
  std::vector<Read> reads_;
  std::uint64_t read_bytes_ = 0;
  std::uint64_t ram_bytes_ = 0;
  std::uint64_t disk_bytes_ = 0;
  std::uint64_t decoded_bytes_ = 0;
  std::uint64_t kept_decoded_bytes_ = 0;
  bool crosses_link_ = false;
  bool reads_to_device_ = false;
  bool reads_frames_ = false;
  Clock::time_point started_;
  Clock::time_point ended_;

  // Own synchronisation.
  std::atomic<std::size_t> next_ = 0;

  // Guarded by mutex_.
  mutable Mutex mutex_;
  std::exception_ptr error_ TS_GUARDED_BY(mutex_);
};

}  // namespace tensorstream

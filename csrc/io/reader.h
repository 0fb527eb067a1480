// Reader: how bytes of one file or buffer get into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

namespace tensorstream {

struct FileIdentity;
class FileWindow;
class PinnedFile;

/// Where a reader's bytes live.
enum class Tier { kRam, kDisk };

/// A read that was begun. What it fills is nobody's to touch until wait() has returned or this is
/// gone. Move-only; belongs to one thread at a time.
class PendingRead {
 public:
  /// What the reader knows of it.
  class Work {
   public:
    /// Starts nothing more of it, and blocks until nothing of it is under way.
    virtual ~Work() = default;
    /// Blocks until all is read. Raises as Reader::read() does.
    virtual void wait() = 0;
  };

  /// One that is done.
  PendingRead() = default;
  explicit PendingRead(std::unique_ptr<Work> work) : work_(std::move(work)) {}

  /// Blocks until all is read; at once where that has been waited for. Raises as Reader::read()
  /// does.
  void wait() {
    if (const std::unique_ptr<Work> work = std::move(work_)) work->wait();
  }

 private:
  std::unique_ptr<Work> work_;  // null once it was waited for
};

/// Frames (csrc/codec/FORMAT.md) that a source has one behind the other.
struct FrameSpan {
  /// What they decode to, as read() counts.
  std::uint64_t offset_bytes = 0;
  std::uint64_t decoded_bytes = 0;
  std::uint64_t stored_bytes = 0;
  /// What is read: the frames, and less than a page before and behind them, so that the disk reads
  /// whole blocks. Memory for it had best begin at a page.
  std::uint64_t before_bytes = 0;
  std::uint64_t read_bytes = 0;
};

/// Random access to the bytes of one source. Thread-safe. Shared from its own control block, so
/// that bindings add none of their own language's.
class Reader : public std::enable_shared_from_this<Reader> {
 public:
  virtual ~Reader() = default;

  /// What the reader reads, for messages: a path, or "memory of 'lm_head.weight'".
  virtual const std::string& name() const noexcept = 0;
  virtual Tier tier() const noexcept = 0;
  virtual std::uint64_t size_bytes() const noexcept = 0;
  /// Of the file that it reads, as it was opened; null where it reads none.
  virtual const FileIdentity* identity() const noexcept;

  /// Fills `out` from `offset_bytes`. Raises IoError (path, offset) when the bytes cannot be had:
  /// the end of the source, a fault, a source that is no longer the one that was opened. `out` may
  /// then be partly written.
  virtual void read(std::uint64_t offset_bytes, std::span<std::byte> out) = 0;

  /// Fills the beginning of `out` with a frame (csrc/codec/FORMAT.md) that decodes to just the
  /// `size_bytes` from `offset_bytes` on, and returns its size; 0 where the source has none. The
  /// frame is verified, and `out` has room for any frame of so many bytes. Raises as read() does.
  virtual std::uint64_t read_frame(std::uint64_t offset_bytes, std::uint64_t size_bytes,
                                   std::span<std::byte> out);

  /// As read(), but where the reader can it goes on by itself, and `out` is filled, or not, once
  /// that was waited for. A read that is not waited for is given up.
  virtual PendingRead begin_read(std::uint64_t offset_bytes, std::span<std::byte> out);

  /// Whole frames of one tensor that decode to what begins at `offset_bytes`, as many as
  /// `decoded_bytes` and `most_stored_bytes` have room for; nothing where the source has none
  /// there. Raises as read() does.
  virtual std::optional<FrameSpan> frames_at(std::uint64_t offset_bytes,
                                             std::uint64_t decoded_bytes,
                                             std::uint64_t most_stored_bytes) const;

  /// As begin_read(), but fills `out`, of read_bytes, with the frames of `span`, which frames_at()
  /// gave, and what is read around them. The frames are verified once that was waited for.
  virtual PendingRead begin_frame_read(const FrameSpan& span, std::span<std::byte> out);

  /// About what frames take that the source has of the range; 0 where it has its bytes as they are.
  virtual std::uint64_t frame_bytes(std::uint64_t offset_bytes,
                                    std::uint64_t size_bytes) const noexcept;

  /// Whether it reads into memory of a device that the host does not reach.
  virtual bool reads_to_device() const noexcept;

  /// As begin_read(), into memory of the device that the reader was opened for, of which nothing
  /// that is enqueued uses it. Raises UnsupportedError where reads_to_device() is false; a failure
  /// that has no errno is a CufileError.
  virtual PendingRead begin_device_read(std::uint64_t offset_bytes, std::span<std::byte> target);

  /// How many bytes from `offset_bytes` on one of several reads had best take: what is decoded as
  /// one. 0 where that makes no difference.
  virtual std::uint64_t best_read_bytes(std::uint64_t offset_bytes) const noexcept;

  /// How far behind a page memory had best begin that a read from `offset_bytes` fills, less than a
  /// page; 0 where that makes no difference.
  virtual std::uint64_t best_shift(std::uint64_t offset_bytes) const noexcept;

  /// The bytes from `offset_bytes` on where they lie in RAM and stay valid while the reader lives,
  /// for asynchronous copies; null elsewhere.
  virtual const std::byte* address(std::uint64_t offset_bytes) const noexcept;

  /// How far one asynchronous copy to a device may go that begins at `offset_bytes`; that offset
  /// where the device cannot copy these bytes by itself.
  virtual std::uint64_t pinned_end(std::uint64_t offset_bytes) const noexcept;

  /// The file, where the device that it was opened for copies from it by itself; null elsewhere. It
  /// lives as long as the reader, which must not go in a callback of a stream then.
  virtual PinnedFile* pinned_file() const noexcept;

  /// Where the bytes of the range can be used without a copy of them; null where they cannot, or
  /// where that would be no quicker than to read them. For readers that a shared_ptr owns.
  virtual std::unique_ptr<FileWindow> window(std::uint64_t offset_bytes,
                                             std::uint64_t size_bytes) const;

  /// Whether the range can be read without a wait for a disk, as far as its ends tell.
  virtual bool cached(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept;

  /// Brings the range to where cached() says true, and waits for that. A hint: an error is left to
  /// the read that follows.
  virtual void prefetch(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept;
};

/// A reader of host memory that `owner` keeps alive. The bytes may change between reads, not during
/// one.
std::unique_ptr<Reader> create_memory_reader(std::string name, std::span<const std::byte> bytes,
                                             std::shared_ptr<const void> owner);

}  // namespace tensorstream

// DiskQueue: reads of any bytes of files, many at a time, past the page cache.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "base/units.h"
#include "io/read_cut.h"
#include "io/reader.h"
#include "io/transfer_queue.h"
#include "platform/disk_file.h"
#include "platform/mapping.h"
#include "platform/retry.h"

namespace tensorstream {

/// Keeps as many transfers under way as its TransferQueue takes, in the order in which reads were
/// begun. Here, and nowhere else, a short, an interrupted and a failed transfer become a read that
/// is whole or an IoError (of cuFile a CufileError). Thread-safe. Shared by the readers and the
/// reads that use it.
class DiskQueue : public std::enable_shared_from_this<DiskQueue> {
 public:
  /// What a disk of this kind is read in: docs/adr/0014-a-queue-of-direct-reads.md.
  static constexpr std::uint64_t kRequestBytes = 512_KiB;
  static constexpr std::size_t kDepth = 16;
  static constexpr std::size_t kMostDepth = 64;

  /// Cuts reads into transfers of at most `request_bytes`. Takes as much memory for each that may
  /// be under way, for those that cannot go right to their target. Raises ConfigError where
  /// `request_bytes` is not made of pages or the depth is 0 or above kMostDepth, and
  /// UnsupportedError.
  static std::shared_ptr<DiskQueue> create(std::unique_ptr<TransferQueue> transfers,
                                           std::uint64_t request_bytes = kRequestBytes);
  ~DiskQueue();
  DiskQueue(const DiskQueue&) = delete;
  DiskQueue& operator=(const DiskQueue&) = delete;

  /// Begins to fill `out` from `offset_bytes` of `file` on. The file is looked at again when all is
  /// read: one that changed meanwhile is an IoError. Raises IoError where the file does not have
  /// the bytes, and UnsupportedError in a forked child.
  PendingRead begin(std::shared_ptr<const DiskFile> file, std::uint64_t offset_bytes,
                    std::span<std::byte> out);

  std::size_t depth() const noexcept { return slots_.size(); }
  std::uint64_t request_bytes() const noexcept { return request_bytes_; }

 private:
  /// One read that was begun. Guarded by mutex_.
  struct Read {
    std::shared_ptr<const DiskFile> file;  // shared with its reader
    std::vector<ReadPiece> pieces;
    std::size_t next = 0;       // the piece that is to be started next
    std::size_t under_way = 0;  // of those before it
    std::exception_ptr error;

    bool is_over() const noexcept { return next == pieces.size() && under_way == 0; }
  };

  /// What one transfer needs while it is under way.
  struct Slot : Transfer {
    std::span<std::byte> memory;  // for what does not go right to its target
    Read* read = nullptr;
    ReadPiece piece;
    ReadProgress progress{0};

    void take(Read& from);
    /// Points the transfer at what is left of the piece.
    void aim() noexcept;
    /// What went wrong, for whoever waits.
    std::exception_ptr error() const noexcept;
  };

  /// Transfers to start once the lock is let go.
  struct Ready {
    std::array<Transfer*, kMostDepth> transfers{};
    std::size_t count = 0;
  };

  class Work;

  DiskQueue(std::unique_ptr<TransferQueue> transfers, std::uint64_t request_bytes);
  void note(Transfer& transfer, std::int64_t result) noexcept;
  Ready take_ready() noexcept TS_REQUIRES(mutex_);
  void start(const Ready& ready) noexcept TS_EXCLUDES(mutex_);
  void add(Read& read);
  void wait(Read& read);
  /// Starts no more of it and waits for what is under way.
  void end(Read& read) noexcept;
  void start_no_more(Read& read) noexcept TS_REQUIRES(mutex_);

  // Constant after construction.
  const std::int64_t process_;
  const std::uint64_t request_bytes_;
  const Mapping memory_;
  std::vector<Slot> slots_;  // each is its transfer's own while that is under way

  // Guarded by mutex_.
  Mutex mutex_;
  ConditionVariable over_;
  std::vector<Slot*> free_ TS_GUARDED_BY(mutex_);
  std::deque<Read*> waiting_ TS_GUARDED_BY(mutex_);  // with pieces that are to be started

  const std::unique_ptr<TransferQueue> transfers_;  // last: its threads use all of the above
};

}  // namespace tensorstream

// StagingRing: pinned pieces through which bytes that a device cannot copy by itself reach it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/units.h"
#include "device/device.h"
#include "memory/budget.h"
#include "memory/pinned_memory.h"

namespace tensorstream {

struct StagingRingOptions {
  /// Bytes of a piece. Smaller copies do not reach the link's rate.
  std::uint64_t piece_bytes = 16_MiB;
  std::size_t pieces = 4;
  /// Of host RAM; null where nothing is charged. Shared with all that takes from it.
  std::shared_ptr<Budget> budget = nullptr;
};

/// A few pieces of pinned memory, used in turn. Thread-safe, a Piece is for one thread at a time. A
/// thread that holds a piece waits for no other, so that threads which want pieces never wait for
/// each other in a circle. The device outlives the ring, the ring its pieces; a stream that it was
/// used with outlives it too, or its next drain(). Where the system pins nothing the pieces are
/// pageable: right, and slower.
class StagingRing {
 public:
  class Piece;

  /// Raises BudgetError where there is no such memory, ConfigError where a piece or the ring is
  /// empty, and CudaError.
  explicit StagingRing(Device& device, const StagingRingOptions& options = {});
  /// As drain().
  ~StagingRing();
  StagingRing(const StagingRing&) = delete;
  StagingRing& operator=(const StagingRing&) = delete;

  /// The piece that was given back the longest ago. Blocks while all are held, and until its last
  /// copy is done; so the caller holds no lock that a callback of a stream takes. Raises LeaseError
  /// where the calling thread holds one already, and CudaError where it cannot be told that the
  /// copy is done; the piece is then given back.
  Piece take();
  /// As take(), but waits for nothing, so that a thread may hold several; nothing where that piece
  /// is not to be had at once.
  std::optional<Piece> try_take();
  /// Waits for the copies under way, and logs where it cannot be told that one is done. No piece is
  /// held meanwhile.
  void drain() noexcept;

  std::uint64_t piece_bytes() const noexcept { return piece_bytes_; }
  std::size_t pieces() const noexcept { return slots_.size(); }
  /// True where all pieces are pinned.
  bool is_pinned() const noexcept { return memory_.pinned_bytes() == memory_.size_bytes(); }

 private:
  struct Slot {
    std::span<std::byte> bytes;
    std::unique_ptr<Event> copied;  // the last copy
    Stream* stream = nullptr;       // of copies that may be under way; null for none
    bool untold = false;            // `copied` may not tell of the last copy: a call failed
    std::thread::id holder;         // guarded by mutex_; nobody's while the piece is free

    /// Blocks until no copy of the piece is under way. Raises CudaError.
    void settle();
    /// Whether settle() would return at once. Raises CudaError.
    bool is_settled() const;
    /// As settle(), but logs, and waits in another way where one fails.
    void drain() noexcept;
  };

  Slot& take_slot();
  void give_back(Slot& slot) noexcept;

  // Constant after construction.
  const std::uint64_t piece_bytes_;
  PinnedMemory memory_;
  std::vector<Slot> slots_;

  // Guarded by mutex_.
  Mutex mutex_;
  ConditionVariable changed_;
  std::vector<Slot*> free_ TS_GUARDED_BY(mutex_);  // the longest given back first
};

/// The right to one piece of a ring, which it goes back to, with its copies under way, when this
/// goes; until then it counts as held by the thread that took it. Move-only; one that was moved
/// from is empty and copies nothing.
class StagingRing::Piece {
 public:
  Piece(Piece&& other) noexcept;
  Piece& operator=(Piece&& other) noexcept;
  Piece(const Piece&) = delete;
  Piece& operator=(const Piece&) = delete;
  ~Piece() { give_back(); }

  /// What to fill; what a copy was enqueued of is not changed afterwards.
  std::span<std::byte> bytes() const noexcept;
  /// Enqueues a copy of `source`, a part of bytes(), to device memory. May be called again, for
  /// other parts and other streams. Raises LeaseError where `source` is not in the piece, and
  /// CudaError: then the copy may be under way all the same, which the ring waits for.
  void copy_to_device(Stream& stream, std::byte* target, std::span<const std::byte> source);
  /// Copies `size_bytes` of device memory to the beginning of bytes(), in the order of `stream`,
  /// and waits for them. Raises as copy_to_device() does.
  std::span<const std::byte> copy_to_host(Stream& stream, const std::byte* source,
                                          std::uint64_t size_bytes);

 private:
  friend class StagingRing;
  Piece(StagingRing& ring, Slot& slot) : ring_(&ring), slot_(&slot) {}
  void check_part(std::span<const std::byte> part) const;
  /// Calls `enqueue()`, a copy in `stream` of bytes of the piece, and has the piece's event tell
  /// its end.
  template <typename Enqueue>
  void enqueue_in(Stream& stream, const Enqueue& enqueue);
  void give_back() noexcept;

  StagingRing* ring_;  // null once moved from, as slot_
  Slot* slot_;
};

}  // namespace tensorstream

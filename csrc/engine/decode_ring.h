// DecodeRing: device memory through which batches of frames go to the place that they are decoded
// to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "codec/device_decoder.h"
#include "device/device.h"
#include "memory/pool.h"

namespace tensorstream {

/// Device memory that a batch stays in, to be decoded from at each use of its group.
struct KeptBatch {
  std::byte* data = nullptr;
  /// Whether the batch is in it, for what comes later in the order of the ring's stream.
  bool there = false;
};

/// A batch on its way: what is copied, and which of its frames are decoded, to where.
struct CodedCopy {
  /// A run of frames, by their numbers in the batch.
  struct Run {
    std::size_t first = 0;
    std::size_t count = 0;
  };

  /// The table, then the frames, in pinned memory that stays until the copy is done.
  std::span<const std::byte> bytes;
  /// The table, for the host.
  std::span<const BatchedFrame> frames;
  std::vector<Run> runs;
  std::byte* target = nullptr;
  /// Where it stays; null where it only goes through the ring.
  KeptBatch* kept = nullptr;
};

/// A few slots of device memory, used in turn: the bytes of one batch are copied while those of the
/// batch before it are decoded. Each slot has a stream, whose order is that of the copies to it and
/// the decodings from it: a batch is two calls of the driver. One thread at a time. The pool
/// outlives it; it drains its streams before its memory goes.
class DecodeRing {
 public:
  /// Slots for batches of at most `batch_bytes`. Raises BudgetError where the budget or the device
  /// has no room, and CudaError.
  DecodeRing(Pool& pool, std::unique_ptr<DeviceDecoder> decoder, std::uint64_t batch_bytes);
  ~DecodeRing();
  DecodeRing(const DecodeRing&) = delete;
  DecodeRing& operator=(const DecodeRing&) = delete;

  /// What a ring for such batches takes of the budget; 0 for batches of 0 bytes.
  static std::uint64_t size_bytes_for(std::uint64_t batch_bytes) noexcept;
  std::uint64_t size_bytes() const noexcept { return memory_.size_bytes(); }

  /// The stream that decodings are in the order of: what it is given before decode() comes before
  /// them, and what it is given after comes after them.
  Stream& stream() const noexcept { return *stream_; }
  /// Enqueues the copies and the decodings of a load's batches. Copies wait for nothing that
  /// stream() waits for but what their slot was used for before. A batch that stays is copied once,
  /// in `copies`, and to where it stays. Raises CudaError, once what is under way
  /// is done.
  void decode(Stream& copies, std::span<const CodedCopy> batches);
  /// The same for batches that come one by one: after begin(), and before join(), with which they
  /// come before what stream() is given next. `copy` enqueues the copy of the batch to a slot.
  /// Raises CudaError, and what `copy` raises; drain() then waits for what is under way.
  void begin();
  void decode(const CodedCopy& batch, const std::function<void(Stream&, std::byte*)>& copy);
  void join();
  void drain() noexcept;
  /// The most that one takes.
  std::uint64_t batch_bytes() const noexcept { return slot_bytes_; }
  /// Enqueues the decoding of batches that are there, all for one place, in `stream`, which comes
  /// after what brought them.
  void decode_kept(Stream& stream, std::span<const CodedCopy> copies);
  /// Has the copies that are enqueued from now on come after `event`.
  void wait(const Event& event);
  /// Blocks until nothing is under way.
  void synchronize() const;

 private:
  struct Slot {
    std::byte* data = nullptr;
    std::unique_ptr<Stream> stream;
    std::unique_ptr<Event> decoded;  // what the stream held when a load ended
    std::uint64_t load = 0;          // the last one whose beginning the stream waits for
    bool joined = true;              // stream_ waits for all that the stream holds
  };

  void decode_batch(Stream& copies, const CodedCopy& copy);
  void keep(Stream& copies, const CodedCopy& copy);
  static void add_runs(const CodedCopy& copy, const std::byte* batch, std::vector<FrameRun>& runs);
  void decode_from(const std::byte* batch, Stream& stream, const CodedCopy& copy);

  // Memory last to go: what the stream holds uses it.
  Block memory_;
  const std::uint64_t slot_bytes_;
  const std::unique_ptr<DeviceDecoder> decoder_;
  std::vector<Slot> slots_;
  std::size_t next_ = 0;
  std::uint64_t loads_ = 0;
  const std::unique_ptr<Stream> stream_;
  const std::unique_ptr<Event> begun_;  // what the stream held before the last load
  const std::unique_ptr<Event> kept_;   // the last copy of a batch that stays
};

}  // namespace tensorstream

// StagedReader: files into a staging ring, ahead of the loads that they are for.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "base/units.h"
#include "device/device.h"
#include "io/reader.h"
#include "memory/staging_ring.h"

namespace tensorstream {

class DecodeRing;
class Load;

/// Pieces of the ring: docs/adr/0016-three-tiers.md.
inline constexpr std::size_t kStagingPieces = 8;

/// Bytes of one where a copy moves `piece_bytes` at most.
constexpr std::uint64_t staging_piece_bytes(std::uint64_t piece_bytes) {
  return align_up(piece_bytes / 2 + piece_bytes % 2, kGroupAlignment);
}

/// The most frames that one read may have: the table of so many finds room in a piece.
inline constexpr std::uint64_t kMostStagedFrames = 256;

/// One read into a piece of a ring, and where the parts of it go.
struct StagedRead {
  struct Part {
    std::uint64_t offset_bytes = 0;  // in what is read
    std::span<std::byte> target;     // device memory
  };

  std::shared_ptr<Reader> reader;  // shared with the source table
  std::uint64_t offset_bytes = 0;
  std::uint64_t size_bytes = 0;
  std::vector<Part> parts;
  /// What is read, where the device decodes it: to the one part, all of it.
  std::optional<FrameSpan> frames{};

  /// What crosses the link.
  std::uint64_t moved_bytes() const noexcept { return frames ? frames->stored_bytes : size_bytes; }
};

/// Bytes of one reader that go to one place.
struct StagedExtent {
  std::shared_ptr<Reader> reader;  // shared with the source table
  std::uint64_t offset_bytes = 0;
  std::span<std::byte> target;
  /// The frames that decode to these bytes, for the device; they fit a piece.
  std::optional<FrameSpan> frames{};
};

/// Cuts `extents` into reads of at most `piece_bytes`: those of files first, in the order in which
/// each file has them, and what lies there without a gap by one read, but frames.
std::vector<StagedRead> cut_for_staging(std::vector<StagedExtent> extents,
                                        std::uint64_t piece_bytes);

/// Keeps reads under way in as many pieces of a ring as are free, so that a disk goes on while
/// other loads cross the link and while places are in use. What is read ahead is used by a load
/// that asks for the same bytes of the same reader, and is dropped where another load comes first.
/// Frames go on through a ring that they are decoded from. Thread-safe; one load at a time. The
/// rings outlive it, and nobody else uses the one of pieces.
class StagedReader {
 public:
  /// `decoding` is null where no frames are read.
  explicit StagedReader(StagingRing& ring, DecodeRing* decoding = nullptr)
      : ring_(ring), decoding_(decoding) {}

  /// Sends what `load` reads through the ring into `stream`, which is the decoding ring's where
  /// there are frames, and meanwhile begins to read `next`, what comes after it. A failure is the
  /// load's.
  void send(Load& load, Stream& stream, std::span<const StagedRead> next) noexcept;
  /// Begins one of the reads in `next`, which are to come, in their order: false where all are
  /// under way, or no piece is free.
  bool read_ahead(std::span<const StagedRead> next) noexcept;
  /// Gives up what was read ahead.
  void drop() noexcept;

  std::uint64_t piece_bytes() const noexcept { return ring_.piece_bytes(); }
  /// The most that frames of one read may take; 0 where none are to be read.
  std::uint64_t frame_room_bytes() const noexcept;
  /// The most that is read ahead.
  std::uint64_t ring_bytes() const noexcept { return ring_.piece_bytes() * ring_.pieces(); }
  /// Bytes, as they cross the link, that loads found under way, or there.
  std::uint64_t ahead_bytes() const noexcept { return ahead_bytes_; }

 private:
  /// A read that was begun. The piece outlives what fills it.
  struct Begun {
    std::shared_ptr<Reader> reader;  // shared with the source table
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;
    bool has_frames = false;
    std::span<std::byte> bytes;  // of the piece: what is read
    StagingRing::Piece piece;
    PendingRead pending;

    bool is_for(const StagedRead& read) const noexcept;
  };

  void send_all(std::span<const StagedRead> reads, Stream& stream, std::span<const StagedRead> next)
      TS_REQUIRES(mutex_);
  std::size_t begun_of(std::span<const StagedRead> reads) const TS_REQUIRES(mutex_);
  void keep_first(std::size_t count) noexcept TS_REQUIRES(mutex_);
  bool try_begin_ahead(const StagedRead& read) noexcept TS_REQUIRES(mutex_);
  bool try_begin(const StagedRead& read) TS_REQUIRES(mutex_);
  void begin(const StagedRead& read, StagingRing::Piece piece) TS_REQUIRES(mutex_);
  static void copy(Begun& begun, const StagedRead& read, Stream& stream);
  void decode(Begun& begun, const StagedRead& read);

  // Constant after construction.
  StagingRing& ring_;
  DecodeRing* const decoding_;

  // Guarded by mutex_, which is held while a disk is waited for: nothing else takes it then.
  Mutex mutex_;
  std::deque<Begun> begun_ TS_GUARDED_BY(mutex_);  // in the order of their use

  // Own synchronisation.
  std::atomic<std::uint64_t> ahead_bytes_ = 0;
};

}  // namespace tensorstream

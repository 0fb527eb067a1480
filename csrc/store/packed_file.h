// A packed file read here and there, as the file that it was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "codec/frame_format.h"
#include "platform/file.h"
#include "store/packed_header.h"
#include "store/packed_part.h"

namespace tensorstream {

class ThreadTeam;

/// Parts of one tensor of a packed file that lie there one behind the other.
struct PackedSpan {
  const PackedTensor* tensor = nullptr;  // of the file
  std::uint64_t first = 0;               // number of the first part
  std::uint64_t count = 0;
  std::uint64_t decoded_bytes = 0;
  /// Where they are in the packed file.
  std::uint64_t offset_bytes = 0;
  std::uint64_t size_bytes = 0;
};

/// Offsets are those of the file that was packed. Every byte that is given out was checked against
/// the checksums of the header: in this very read, or, in verify() of a file that lies in RAM, in
/// one before it. Thread-safe.
class PackedFile {
 public:
  /// Opens the file at `path` and checks its header. Raises as read_packed_header() does.
  explicit PackedFile(const std::string& path);

  const std::string& path() const noexcept { return file_.path(); }
  /// Of the file that was packed.
  std::uint64_t size_bytes() const noexcept;

  /// Fills `out` with bytes of tensors from `offset_bytes` on. A part that is not wanted whole is
  /// read as far as its checksums ask for: of a frame the index and the chunks, else all of it.
  /// Raises IoError where no tensor has these bytes, where the file cannot be read or was changed,
  /// and FormatError (file, tensor, frame, chunk) where it is damaged.
  void read(std::uint64_t offset_bytes, std::span<std::byte> out) const;

  /// Fills the beginning of `out`, which has frame_bound() of `decoded_bytes`, with the frame that
  /// decodes to just these bytes, verified, and returns its size; 0 where the file has none. Raises
  /// as read() does.
  std::uint64_t read_frame(std::uint64_t offset_bytes, std::uint64_t decoded_bytes,
                           std::span<std::byte> out) const;

  /// The whole parts from `offset_bytes` on that `decoded_bytes` have room for, no more of them
  /// than take `most_bytes` in the file. Nothing where no part begins there, or not even one has
  /// room. Raises as read() does.
  std::optional<PackedSpan> span_at(std::uint64_t offset_bytes, std::uint64_t decoded_bytes,
                                    std::uint64_t most_bytes) const;
  /// Fills `out`, of the span's decoded_bytes, from what was read of it in the file. Raises as
  /// read() does.
  void decode(const PackedSpan& span, std::span<const std::byte> stored,
              std::span<std::byte> out) const;
  /// Raises as read() does where `stored`, read of an encoded span in the file, is not what was
  /// packed. The work is shared with `team`, unless that is null. What lies in RAM is looked at
  /// once: no disk brings it anew, and the file is looked at each time.
  void verify(const PackedSpan& span, std::span<const std::byte> stored, ThreadTeam* team) const;
  /// Where the part that has the byte ends; the byte itself where no tensor has it.
  std::uint64_t part_end(std::uint64_t offset_bytes) const noexcept;

  /// About what the range's encoded parts take in the file; 0 where it has none.
  std::uint64_t encoded_bytes(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept;

  const File& file() const noexcept { return file_; }

  /// As Reader has them: about where the range is in the packed file.
  bool cached(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept;
  void prefetch(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept;

 private:
  struct Range {
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;
  };

  std::size_t number_of(const PackedTensor& tensor) const noexcept;
  /// The tensor that has the byte; null where none has.
  const PackedTensor* tensor_at(std::uint64_t offset_bytes) const noexcept;
  void read_part(const PackedPart& part, std::uint64_t skip_bytes, std::span<std::byte> out) const;
  void read_plain(const PackedPart& part, std::uint64_t skip_bytes, std::span<std::byte> out) const;
  void read_encoded(const PackedPart& part, std::uint64_t skip_bytes,
                    std::span<std::byte> out) const;
  void decode_some(const PackedPart& part, const FrameView& frame, std::span<std::byte> stored,
                   std::uint64_t skip_bytes, std::span<std::byte> out) const;
  /// Where the frame of a part, or the part as it is, is in the file.
  Range frame_of(const PackedPart& part) const;
  Range place_of(const PackedPart& part) const;
  /// Where the frames of a tensor begin and the last one ends.
  std::vector<std::uint64_t> find_frames(const PackedTensor& tensor) const;
  void refuse_first_damage(const PackedTensor& tensor, std::span<const std::uint64_t> begins) const;
  Range stored_range(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept;
  bool was_verified(const PackedSpan& span) const;
  void note_verified(const PackedSpan& span) const;

  // Constant after construction.
  const File file_;
  const PackedHeader header_;
  const bool lies_in_ram_;

  // Guarded by mutex_.
  mutable Mutex mutex_;
  /// By tensor, once one of its frames was asked for.
  mutable std::vector<std::vector<std::uint64_t>> frames_ TS_GUARDED_BY(mutex_);
  /// By tensor and part, of a file in RAM.
  mutable std::vector<std::vector<bool>> verified_ TS_GUARDED_BY(mutex_);
};

}  // namespace tensorstream

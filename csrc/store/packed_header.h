// The header of a packed file: a safetensors file that holds the tensors of another, encoded where
// that pays. PACKED.md has the format.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/units.h"
#include "platform/file.h"
#include "store/safetensors.h"

namespace tensorstream {

/// Names of tensors and of metadata that begin with this are the packed format's own.
inline constexpr std::string_view kReservedPrefix = "tensorstream.";

/// What tensors are multiples of, and begin at multiples of, so that they can be read directly.
inline constexpr std::uint64_t kPackedAlignment = 4096;
/// What smaller ones begin at multiples of.
inline constexpr std::uint64_t kSmallAlignment = 64;
/// What of a tensor has one checksum: as much as a frame decodes to.
inline constexpr std::uint64_t kPartBytes = 2_MiB;

/// Where a tensor of this size begins: at a multiple of this.
constexpr std::uint64_t alignment_in_packed(std::uint64_t size_bytes) {
  return size_bytes < kPackedAlignment ? kSmallAlignment : kPackedAlignment;
}

/// How many parts, or frames, a tensor of this size has.
constexpr std::uint64_t parts_of(std::uint64_t size_bytes) {
  return size_bytes / kPartBytes + (size_bytes % kPartBytes == 0 ? 0 : 1);
}

/// A range of a packed file.
struct PackedExtent {
  std::string name;
  std::uint64_t offset_bytes = 0;
  std::uint64_t size_bytes = 0;
};

struct PackedTensor {
  /// As it was, with its place in the file that was packed.
  StoredTensor original;
  /// Where it is now: its frames and the zeros behind them, or its bytes as they were.
  PackedExtent stored;
  bool encoded = false;
  /// Of each part: its frame's own where it is encoded, else of its bytes.
  std::vector<std::uint64_t> checksums;
};

struct PackedHeader {
  /// The header of the file that was packed, byte for byte.
  HeaderText original;
  /// In the order of the original's offsets.
  std::vector<PackedTensor> tensors;
  /// Zeros that keep tensors aligned.
  std::vector<PackedExtent> padding;
  /// The header's own checksum, which stands for the whole file.
  std::string seal;
};

/// Whether a file is packed, by any version of the format.
bool is_packed(const SafetensorsHeader& header);

/// Reads and checks the header of a packed file. Raises IoError, FormatError, and UnsupportedError
/// where a newer version of the format was used.
PackedHeader read_packed_header(const File& file);

/// Makes the header of a packed file. Offsets count from the start of the data section.
class PackedHeaderWriter {
 public:
  /// `original` outlives the writer.
  explicit PackedHeaderWriter(const HeaderText& original) : original_(original) {}

  void add_frames(const StoredTensor& tensor, std::uint64_t begin, std::uint64_t end,
                  std::span<const std::uint64_t> checksums);
  void add_plain(const StoredTensor& tensor, std::uint64_t begin,
                 std::span<const std::uint64_t> checksums);
  /// Before `tensor`, after which it is named: names are unique in all files of a checkpoint.
  void add_padding(const StoredTensor& tensor, std::uint64_t begin, std::uint64_t end);

  /// The names of all tensors that were added.
  const std::vector<std::string>& names() const noexcept { return names_; }
  /// The header, sealed and filled up to `size_bytes`, which are enough.
  std::string text(std::uint64_t size_bytes) const;

  /// A size that is enough for any way to pack `tensors`, and with which the data section begins at
  /// a multiple of kPackedAlignment. Raises UnsupportedError where the format allows no such size.
  static std::uint64_t bound(const std::string& path, const HeaderText& original,
                             std::span<const StoredTensor> tensors);

 private:
  std::string unfilled() const;
  void add_checksums(const std::string& name, std::span<const std::uint64_t> checksums);
  void add_entry(const std::string& name, std::string_view dtype,
                 std::span<const std::uint64_t> shape, std::uint64_t begin, std::uint64_t end);

  const HeaderText& original_;
  std::vector<std::string> names_;
  std::string metadata_;
  std::string entries_;
};

}  // namespace tensorstream

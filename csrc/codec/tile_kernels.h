// The work on one tile: cutting its elements, and its symbols' bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "codec/element_layout.h"
#include "codec/frame_format.h"
#include "codec/rank_code.h"

namespace tensorstream {

/// A tile's elements, apart: their symbols, and the bits of their bit planes.
struct alignas(64) TileValues {
  std::array<std::uint8_t, kTileElements> symbols;
  std::array<std::uint8_t, kTileElements> bits;
};

/// Appends bits to a plane, the first lowest. Whole words are written as they fill up.
class BitWriter {
 public:
  void begin(std::byte* target) noexcept {
    next_ = target;
    pending_ = 0;
    filled_ = 0;
  }
  /// Appends the lowest `count` of `bits`, of which the others are 0; `count` is at most 64.
  void append(std::uint64_t bits, std::uint32_t count) noexcept {
    pending_ |= bits << filled_;
    filled_ += count;
    if (filled_ < 64) return;
    std::memcpy(next_, &pending_, sizeof pending_);
    next_ += sizeof pending_;
    filled_ -= 64;
    pending_ = filled_ == 0 ? 0 : bits >> (count - filled_);
  }
  /// Writes what is left, as a whole word.
  void end() noexcept { std::memcpy(next_, &pending_, sizeof pending_); }

 private:
  std::byte* next_ = nullptr;
  std::uint64_t pending_ = 0;
  std::uint32_t filled_ = 0;  // below 64 between calls
};

/// The `count` bits of a plane from bit `first` on, as the lowest; `count` is from 0 to 64. Reads
/// up to 9 bytes from the first one on.
inline std::uint64_t read_bits(const std::byte* plane, std::uint32_t first,
                               std::uint32_t count) noexcept {
  const std::byte* const at = plane + first / 8;
  const std::uint32_t shift = first % 8;
  std::uint64_t word = 0;
  std::memcpy(&word, at, sizeof word);
  const auto above = static_cast<std::uint64_t>(at[8]);
  word = (word >> shift) | (above << 1U << (63 - shift));
  return count >= 64 ? word : word & ((std::uint64_t{1} << count) - 1);
}

/// Where the elements of a level are escapes, 64 from element `first` on, a multiple of 64: bits of
/// those behind the first `count` are 0.
inline std::uint64_t escapes_from(const std::byte* planes, std::uint32_t width, std::uint32_t count,
                                  std::uint32_t first) noexcept {
  const std::uint32_t left = count - first;
  std::uint64_t all = left >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << left) - 1;
  const std::byte* at = planes + first / 8;
  for (std::uint32_t plane = 0; plane < width; ++plane, at += (count + 7U) / 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, at, sizeof word);
    all &= word;
  }
  return all;
}

/// The lower levels of a chunk while it is encoded: planes, literals, and how much there is of
/// each.
struct LowerLevelsWriter {
  std::array<BitWriter, kMostLowerPlanes> planes;
  ChunkCounts counts;
  std::uint8_t* literals;  // those written so far end at counts' last
};

/// The same of a chunk that is decoded. Nothing beyond the counts is read but whole words.
struct LowerLevelsReader {
  std::array<const std::byte*, kMostLowerPlanes> planes;
  ChunkCounts counts;
  ChunkCounts used;
  const std::byte* literals;
};

/// One way to do the work; all give the same bytes. Immutable.
class TileKernels {
 public:
  virtual ~TileKernels() = default;

  virtual const char* name() const noexcept = 0;

  /// Cuts a tile's elements: bytes go to each byte plane, which are `plane_stride` apart.
  virtual void split(ElementKind kind, const std::byte* elements, std::byte* byte_planes,
                     std::size_t plane_stride, TileValues& values) const noexcept = 0;
  /// Puts them together again.
  virtual void merge(ElementKind kind, const std::byte* byte_planes, std::size_t plane_stride,
                     const TileValues& values, std::byte* elements) const noexcept = 0;

  /// Writes the `planes` lowest bits of the values as bit planes.
  virtual void write_bits(const TileValues& values, std::uint32_t planes,
                          std::byte* target) const noexcept = 0;
  virtual void read_bit_planes(const std::byte* source, std::uint32_t planes,
                               TileValues& values) const noexcept = 0;

  /// Writes the first level's planes to `first` and appends to the others.
  virtual void encode_symbols(const RankCode& code, const TileValues& values, std::byte* first,
                              LowerLevelsWriter& lower) const noexcept = 0;
  /// False where the codes ask for more than the counts allow.
  virtual bool decode_symbols(const RankCode& code, const std::byte* first,
                              LowerLevelsReader& lower, TileValues& values) const noexcept = 0;
  /// How many of the first `count` elements of a level are escapes. Its planes are one behind the
  /// other; up to 7 bytes behind the last are read.
  virtual std::uint32_t count_escapes(const std::byte* planes, std::uint32_t width,
                                      std::uint32_t count) const noexcept = 0;

 protected:
  TileKernels() = default;
  TileKernels(const TileKernels&) = default;
  TileKernels& operator=(const TileKernels&) = default;
};

/// Plain C++, for any processor.
const TileKernels& portable_kernels() noexcept;
/// AVX2 and BMI2; null where this build or processor has none.
const TileKernels* avx2_kernels() noexcept;
/// The fastest that this processor runs.
const TileKernels& fastest_kernels() noexcept;

/// The element that bit `position` of a lane's word is of, in its tile: a lane holds four groups of
/// eight elements, 256 apart, and its word takes one of each group in turn.
constexpr std::uint32_t element_at(std::uint32_t lane, std::uint32_t position) noexcept {
  return (position % 4) * 256 + lane * 8 + position / 4;
}

}  // namespace tensorstream

#include <algorithm>
#include <bit>

#include "codec/tile_kernels.h"
#include "codec/tile_split.h"

namespace tensorstream {
namespace {

/// The code of a rank in each level that it reaches.
struct Codeword {
  std::uint8_t levels;
  std::array<std::uint8_t, kMostLevels> codes;
};

/// By rank; the last is that of the symbols without one.
using Codewords = std::array<Codeword, kMostRankedSymbols + 1>;

Codewords codewords_of(const LevelWidths& widths) noexcept {
  Codewords words{};
  std::uint32_t first = 0;
  for (std::uint32_t level = 0; level < widths.count; ++level) {
    const std::uint32_t escape = (1U << widths.bits[level]) - 1;
    for (std::uint32_t rank = first; rank <= widths.ranked_symbols(); ++rank) {
      words[rank].levels = static_cast<std::uint8_t>(level + 1);
      words[rank].codes[level] = static_cast<std::uint8_t>(std::min(rank - first, escape));
    }
    first += escape;
  }
  return words;
}

/// Appends what follows the first level of one element.
void append_lower(const LevelWidths& widths, const Codeword& word, LowerLevelsWriter& lower) {
  std::size_t plane = 0;
  for (std::uint32_t level = 1; level < word.levels; ++level) {
    for (std::uint32_t bit = 0; bit < widths.bits[level]; ++bit) {
      lower.planes[plane++].append((word.codes[level] >> bit) & 1U, 1);
    }
    ++lower.counts[level - 1];
  }
}

constexpr std::uint32_t kFirstEscape = (1U << kFirstWidth) - 1;

/// The elements of a lane that reach a level, by their positions in the order of these.
struct Reached {
  std::array<std::uint8_t, 32> positions;
  std::uint32_t count = 0;

  /// Without a branch: whether an element goes on is as good as random.
  void append_if(bool goes_on, std::uint8_t position) {
    positions[count % 32] = position;
    count += goes_on ? 1 : 0;
  }
};

Reached reached_from(std::uint32_t bits) noexcept {
  Reached reached;
  for (; bits != 0; bits &= bits - 1) {
    reached.positions[reached.count++] = static_cast<std::uint8_t>(std::countr_zero(bits));
  }
  return reached;
}

/// A number for each position of a lane.
using LaneRanks = std::array<std::uint8_t, 32>;

/// Adds to the ranks of a lane what its codes behind the first level say, and leaves the literals
/// in `here`. False where the counts are used up.
bool add_lower(const LevelWidths& widths, Reached& here, LaneRanks& ranks,
               LowerLevelsReader& lower) noexcept {
  std::size_t plane = 0;
  for (std::uint32_t level = 1; level < widths.count && here.count != 0; ++level) {
    const std::uint32_t used = lower.used[level - 1];
    if (used + here.count > lower.counts[level - 1]) return false;  // guard: codes-in-counts
    lower.used[level - 1] = static_cast<std::uint16_t>(used + here.count);
    std::array<std::uint32_t, kMostWidth> bits{};
    for (std::uint32_t bit = 0; bit < widths.bits[level]; ++bit) {
      bits[bit] = static_cast<std::uint32_t>(read_bits(lower.planes[plane++], used, here.count));
    }
    const std::uint32_t escape = (1U << widths.bits[level]) - 1;
    Reached below;
    for (std::uint32_t i = 0; i < here.count; ++i) {
      const std::uint8_t position = here.positions[i];
      std::uint32_t code = 0;
      for (std::uint32_t bit = 0; bit < kMostWidth; ++bit) code |= ((bits[bit] >> i) & 1U) << bit;
      ranks[position] = static_cast<std::uint8_t>(ranks[position] + code);
      below.append_if(code == escape, position);
    }
    here = below;
  }
  return true;
}

constexpr std::uint32_t kGroups = 4;
constexpr std::uint64_t kLowBits = 0x0101010101010101;

/// Eight bits from the lowest of eight bytes, each to be every fourth bit of a lane's word.
std::uint32_t squeeze(std::uint64_t bytes) noexcept {
  bytes = (bytes | bytes >> 4U) & 0x0011001100110011;
  bytes = (bytes | bytes >> 8U) & 0x0000111100001111;
  return static_cast<std::uint32_t>((bytes | bytes >> 16U) & 0x11111111);
}

/// The way back: every fourth bit of a lane's word as the lowest of eight bytes.
std::uint64_t stretch(std::uint32_t word) noexcept {
  std::uint64_t bytes = word & 0x11111111U;
  bytes = (bytes | bytes << 16U) & 0x0000111100001111;
  bytes = (bytes | bytes << 8U) & 0x0011001100110011;
  return (bytes | bytes << 4U) & kLowBits;
}

/// Eight values of each group of a lane.
using LaneBytes = std::array<std::uint64_t, kGroups>;

const std::uint8_t* group_of(const std::uint8_t* values, std::uint32_t lane, std::uint32_t group) {
  return values + element_at(lane, group);
}

std::uint32_t plane_word(const LaneBytes& lane_bytes, std::uint32_t plane) noexcept {
  std::uint32_t word = 0;
  for (std::uint32_t group = 0; group < kGroups; ++group) {
    word |= squeeze((lane_bytes[group] >> plane) & kLowBits) << group;
  }
  return word;
}

void write_word(std::byte* planes, std::uint32_t plane, std::uint32_t lane,
                std::uint32_t word) noexcept {
  std::memcpy(planes + (plane * kLanes + lane) * sizeof word, &word, sizeof word);
}

std::uint32_t read_word(const std::byte* planes, std::uint32_t plane, std::uint32_t lane) noexcept {
  std::uint32_t word = 0;
  std::memcpy(&word, planes + (plane * kLanes + lane) * sizeof word, sizeof word);
  return word;
}

/// What `planes` planes give the elements of a group.
std::uint64_t group_values(const std::byte* source, std::uint32_t planes, std::uint32_t lane,
                           std::uint32_t group) noexcept {
  std::uint64_t bytes = 0;
  for (std::uint32_t plane = 0; plane < planes; ++plane) {
    bytes |= stretch(read_word(source, plane, lane) >> group) << plane;
  }
  return bytes;
}

class PortableKernels final : public TileKernels {
 public:
  const char* name() const noexcept override { return "portable"; }

  void split(ElementKind kind, const std::byte* elements, std::byte* byte_planes,
             std::size_t plane_stride, TileValues& values) const noexcept override {
    split_tile(kind, elements, byte_planes, plane_stride, values);
  }

  void merge(ElementKind kind, const std::byte* byte_planes, std::size_t plane_stride,
             const TileValues& values, std::byte* elements) const noexcept override {
    merge_tile(kind, byte_planes, plane_stride, values, elements);
  }

  void write_bits(const TileValues& values, std::uint32_t planes,
                  std::byte* target) const noexcept override {
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
      LaneBytes bytes;
      for (std::uint32_t group = 0; group < kGroups; ++group) {
        std::memcpy(&bytes[group], group_of(values.bits.data(), lane, group), 8);
      }
      for (std::uint32_t plane = 0; plane < planes; ++plane) {
        write_word(target, plane, lane, plane_word(bytes, plane));
      }
    }
  }

  void read_bit_planes(const std::byte* source, std::uint32_t planes,
                       TileValues& values) const noexcept override {
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
      for (std::uint32_t group = 0; group < kGroups; ++group) {
        const std::uint64_t bytes = group_values(source, planes, lane, group);
        std::memcpy(&values.bits[element_at(lane, group)], &bytes, sizeof bytes);
      }
    }
  }

  void encode_symbols(const RankCode& code, const TileValues& values, std::byte* first,
                      LowerLevelsWriter& lower) const noexcept override {
    const Codewords words = codewords_of(code.widths);
    const std::array<std::uint8_t, 256> ranks = ranks_of(code);
    const std::uint32_t ranked = code.widths.ranked_symbols();
    std::uint16_t& literals = lower.counts[code.widths.count - 1];
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
      LaneBytes codes{};
      for (std::uint32_t group = 0; group < kGroups; ++group) {
        const std::uint8_t* const symbols = group_of(values.symbols.data(), lane, group);
        for (std::uint32_t i = 0; i < 8; ++i) {
          codes[group] |= std::uint64_t{words[ranks[symbols[i]]].codes[0]} << (8 * i);
        }
      }
      const std::uint32_t low = plane_word(codes, 0);
      const std::uint32_t high = plane_word(codes, 1);
      write_word(first, 0, lane, low);
      write_word(first, 1, lane, high);
      for (std::uint32_t below = low & high; below != 0; below &= below - 1) {
        const auto position = static_cast<std::uint32_t>(std::countr_zero(below));
        const std::uint8_t symbol = values.symbols[element_at(lane, position)];
        append_lower(code.widths, words[ranks[symbol]], lower);
        if (ranks[symbol] == ranked) lower.literals[literals++] = symbol;
      }
    }
  }

  bool decode_symbols(const RankCode& code, const std::byte* first, LowerLevelsReader& lower,
                      TileValues& values) const noexcept override {
    const std::uint32_t last = code.widths.count - 1;
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
      for (std::uint32_t group = 0; group < kGroups; ++group) {
        const std::uint64_t ranks = group_values(first, kFirstWidth, lane, group);
        std::uint8_t* const symbols = &values.symbols[element_at(lane, group)];
        for (std::uint32_t i = 0; i < 8; ++i) symbols[i] = code.symbols[(ranks >> (8 * i)) & 3U];
      }
      LaneRanks ranks;
      ranks.fill(kFirstEscape);
      const Reached all = reached_from(read_word(first, 0, lane) & read_word(first, 1, lane));
      Reached here = all;
      if (!add_lower(code.widths, here, ranks, lower)) return false;
      for (std::uint32_t i = 0; i < all.count; ++i) {
        const std::uint8_t position = all.positions[i];
        // The rank of a literal may be one more than there are.
        values.symbols[element_at(lane, position)] = code.symbols[ranks[position] % 16];
      }
      for (std::uint32_t i = 0; i < here.count; ++i) {
        const std::uint32_t at = lower.used[last]++;
        if (at >= lower.counts[last]) return false;  // guard: literals-in-counts
        values.symbols[element_at(lane, here.positions[i])] =
            static_cast<std::uint8_t>(lower.literals[at]);
      }
    }
    return true;
  }

  std::uint32_t count_escapes(const std::byte* planes, std::uint32_t width,
                              std::uint32_t count) const noexcept override {
    std::uint32_t sum = 0;
    for (std::uint32_t first = 0; first < count; first += 64) {
      sum += static_cast<std::uint32_t>(std::popcount(escapes_from(planes, width, count, first)));
    }
    return sum;
  }
};

}  // namespace

const TileKernels& portable_kernels() noexcept {
  static const PortableKernels kernels;
  return kernels;
}

const TileKernels& fastest_kernels() noexcept {
  const TileKernels* const avx2 = avx2_kernels();
  return avx2 != nullptr ? *avx2 : portable_kernels();
}

}  // namespace tensorstream

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

/// The symbol of an element whose first level says that it is named below; nothing where the counts
/// are used up.
std::optional<std::uint8_t> read_lower(const RankCode& code, LowerLevelsReader& lower) noexcept {
  std::size_t plane = 0;
  std::uint32_t rank = (1U << code.widths.bits[0]) - 1;
  for (std::uint32_t level = 1; level < code.widths.count; ++level) {
    const std::uint32_t at = lower.used[level - 1]++;
    if (at >= lower.counts[level - 1]) return std::nullopt;
    const std::uint32_t width = code.widths.bits[level];
    std::uint32_t value = 0;
    for (std::uint32_t bit = 0; bit < width; ++bit) {
      const auto byte = static_cast<std::uint32_t>(lower.planes[plane++][at / 8]);
      value |= ((byte >> (at % 8)) & 1U) << bit;
    }
    rank += value;
    if (value != (1U << width) - 1) return code.symbols[rank];
  }
  const std::uint32_t last = code.widths.count - 1;
  const std::uint32_t at = lower.used[last]++;
  if (at >= lower.counts[last]) return std::nullopt;
  return static_cast<std::uint8_t>(lower.literals[at]);
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
      std::array<std::uint32_t, 8> words{};
      for (std::uint32_t position = 0; position < 32; ++position) {
        const std::uint32_t value = values.bits[element_at(lane, position)];
        for (std::uint32_t plane = 0; plane < planes; ++plane) {
          words[plane] |= ((value >> plane) & 1U) << position;
        }
      }
      for (std::uint32_t plane = 0; plane < planes; ++plane) {
        write_word(target, plane, lane, words[plane]);
      }
    }
  }

  void read_bit_planes(const std::byte* source, std::uint32_t planes,
                       TileValues& values) const noexcept override {
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
      for (std::uint32_t position = 0; position < 32; ++position) {
        std::uint32_t value = 0;
        for (std::uint32_t plane = 0; plane < planes; ++plane) {
          value |= ((read_word(source, plane, lane) >> position) & 1U) << plane;
        }
        values.bits[element_at(lane, position)] = static_cast<std::uint8_t>(value);
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
      std::uint32_t low = 0;
      std::uint32_t high = 0;
      for (std::uint32_t position = 0; position < 32; ++position) {
        const std::uint8_t symbol = values.symbols[element_at(lane, position)];
        const std::uint32_t rank = ranks[symbol];
        const Codeword& word = words[rank];
        low |= (word.codes[0] & 1U) << position;
        high |= static_cast<std::uint32_t>(word.codes[0] >> 1U) << position;
        if (word.levels > 1) append_lower(code.widths, word, lower);
        if (rank == ranked) lower.literals[literals++] = symbol;
      }
      write_word(first, 0, lane, low);
      write_word(first, 1, lane, high);
    }
  }

  bool decode_symbols(const RankCode& code, const std::byte* first, LowerLevelsReader& lower,
                      TileValues& values) const noexcept override {
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
      const std::uint32_t low = read_word(first, 0, lane);
      const std::uint32_t high = read_word(first, 1, lane);
      for (std::uint32_t position = 0; position < 32; ++position) {
        const std::uint32_t rank = ((low >> position) & 1U) | (((high >> position) & 1U) << 1U);
        values.symbols[element_at(lane, position)] = code.symbols[rank];
      }
      for (std::uint32_t below = low & high; below != 0; below &= below - 1) {
        const auto position = static_cast<std::uint32_t>(std::countr_zero(below));
        const auto symbol = read_lower(code, lower);
        if (!symbol) return false;
        values.symbols[element_at(lane, position)] = *symbol;
      }
    }
    return true;
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

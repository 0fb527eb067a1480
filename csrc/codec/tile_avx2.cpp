// Built for x86-64 alone. Two lanes, 64 elements, are worked on at a time: a plane's bits of both
// are one word, and a level's bits are taken from and put to their elements' positions by pext and
// pdep.
#include <immintrin.h>

#include "codec/tile_kernels.h"
#include "codec/tile_split.h"

// On each function that uses them, not on the file: what the standard library inlines here must run
// on every processor.
#define TS_AVX2 [[gnu::target("avx2,bmi,bmi2,popcnt")]]

namespace tensorstream {
namespace {

/// The values of two lanes, each in the order of its positions.
struct LanePair {
  __m256i low;
  __m256i high;
};

TS_AVX2 __m128i load_group(const std::uint8_t* values) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
}

/// One lane's values: the i-th of each of its four groups, then the next.
TS_AVX2 __m256i load_lane(const std::uint8_t* values, std::uint32_t lane) {
  const std::uint8_t* const at = values + lane * std::size_t{8};
  const __m128i even = _mm_unpacklo_epi8(load_group(at), load_group(at + 256));
  const __m128i odd = _mm_unpacklo_epi8(load_group(at + 512), load_group(at + 768));
  return _mm256_set_m128i(_mm_unpackhi_epi16(even, odd), _mm_unpacklo_epi16(even, odd));
}

TS_AVX2 void store_lane(std::uint8_t* values, std::uint32_t lane, __m256i bytes) {
  const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
                                         0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  bytes = _mm256_shuffle_epi8(bytes, order);
  const __m128i first = _mm256_castsi256_si128(bytes);
  const __m128i second = _mm256_extracti128_si256(bytes, 1);
  const __m128i low = _mm_unpacklo_epi32(first, second);
  const __m128i high = _mm_unpackhi_epi32(first, second);
  std::uint8_t* const at = values + lane * std::size_t{8};
  _mm_storel_epi64(reinterpret_cast<__m128i*>(at), low);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(at + 256), _mm_unpackhi_epi64(low, low));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(at + 512), high);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(at + 768), _mm_unpackhi_epi64(high, high));
}

TS_AVX2 std::uint64_t join(std::uint32_t low, std::uint32_t high) {
  return low | (std::uint64_t{high} << 32U);
}

/// Where both lanes hold the symbol.
TS_AVX2 std::uint64_t positions_of(const LanePair& values, std::uint8_t symbol) {
  const __m256i wanted = _mm256_set1_epi8(static_cast<char>(symbol));
  const int low = _mm256_movemask_epi8(_mm256_cmpeq_epi8(values.low, wanted));
  const int high = _mm256_movemask_epi8(_mm256_cmpeq_epi8(values.high, wanted));
  return join(static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(high));
}

/// A level's planes, at the positions of all elements, and where it leads on to the next.
struct LevelBits {
  std::array<std::uint64_t, kMostWidth> planes;
  std::uint64_t below;
};

/// The bits of a level that the elements at `here` reach.
template <std::uint32_t kWidth>
TS_AVX2 LevelBits bits_of_level(const LanePair& values, const std::uint8_t* symbols,
                                std::uint64_t here) {
  LevelBits bits{};
  std::uint64_t named = 0;
  for (std::uint32_t code = 0; code + 1 < (1U << kWidth); ++code) {
    const std::uint64_t found = positions_of(values, symbols[code]);
    named |= found;
    for (std::uint32_t bit = 0; bit < kWidth; ++bit) {
      if ((code >> bit) % 2 != 0) bits.planes[bit] |= found;
    }
  }
  bits.below = here & ~named;
  for (std::uint32_t bit = 0; bit < kWidth; ++bit) bits.planes[bit] |= bits.below;
  return bits;
}

TS_AVX2 LevelBits bits_of_level(std::uint32_t width, const LanePair& values,
                                const std::uint8_t* symbols, std::uint64_t here) {
  if (width == 1) return bits_of_level<1>(values, symbols, here);
  if (width == 2) return bits_of_level<2>(values, symbols, here);
  return bits_of_level<3>(values, symbols, here);
}

TS_AVX2 std::uint32_t count_of(std::uint64_t positions) {
  return static_cast<std::uint32_t>(_mm_popcnt_u64(positions));
}

TS_AVX2 std::uint32_t first_of(std::uint64_t positions) {
  return static_cast<std::uint32_t>(_tzcnt_u64(positions));
}

/// The element of a pair's position.
std::uint32_t element_of_pair(std::uint32_t lane, std::uint32_t position) {
  return element_at(lane + position / 32, position % 32);
}

TS_AVX2 void append_lower(const RankCode& code, const TileValues& values, std::uint32_t lane,
                          const LanePair& pair, std::uint64_t here, LowerLevelsWriter& lower) {
  const std::uint8_t* symbols = code.symbols.data() + (1U << kFirstWidth) - 1;
  std::size_t plane = 0;
  for (std::uint32_t level = 1; level < code.widths.count && here != 0; ++level) {
    const std::uint32_t width = code.widths.bits[level];
    const LevelBits bits = bits_of_level(width, pair, symbols, here);
    const std::uint32_t count = count_of(here);
    for (std::uint32_t bit = 0; bit < width; ++bit) {
      lower.planes[plane++].append(_pext_u64(bits.planes[bit], here), count);
    }
    lower.counts[level - 1] = static_cast<std::uint16_t>(lower.counts[level - 1] + count);
    symbols += (1U << width) - 1;
    here = bits.below;
  }
  std::uint16_t& literals = lower.counts[code.widths.count - 1];
  for (; here != 0; here &= here - 1) {
    lower.literals[literals++] = values.symbols[element_of_pair(lane, first_of(here))];
  }
}

void write_pair(std::byte* planes, std::uint32_t plane, std::uint32_t lane, std::uint64_t words) {
  std::memcpy(planes + (plane * std::size_t{kLanes} + lane) * 4, &words, sizeof words);
}

std::uint64_t read_pair(const std::byte* planes, std::uint32_t plane, std::uint32_t lane) {
  std::uint64_t words = 0;
  std::memcpy(&words, planes + (plane * std::size_t{kLanes} + lane) * 4, sizeof words);
  return words;
}

/// `weight` at each byte whose bit of `bits` is set, else 0.
TS_AVX2 __m256i bytes_of_bits(std::uint32_t bits, __m256i weight) {
  const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                          2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i single = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ULL));
  __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), spread);
  bytes = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, single), single);
  return _mm256_and_si256(bytes, weight);
}

/// Adds 2^bit to the values of both lanes at the positions of a plane.
TS_AVX2 void add_plane(LanePair& sums, std::uint64_t plane, std::uint32_t bit) {
  const __m256i weight = _mm256_set1_epi8(static_cast<char>(1U << bit));
  const auto low = static_cast<std::uint32_t>(plane);
  const auto high = static_cast<std::uint32_t>(plane >> 32U);
  sums.low = _mm256_add_epi8(sums.low, bytes_of_bits(low, weight));
  sums.high = _mm256_add_epi8(sums.high, bytes_of_bits(high, weight));
}

/// Adds the codes of the lower levels to the ranks, and leaves in `here` the positions of literals.
/// False where the counts are used up.
TS_AVX2 bool add_lower(const LevelWidths& widths, LanePair& ranks, std::uint64_t& here,
                       LowerLevelsReader& lower) {
  std::size_t plane = 0;
  for (std::uint32_t level = 1; level < widths.count && here != 0; ++level) {
    const std::uint32_t used = lower.used[level - 1];
    const std::uint32_t count = count_of(here);
    if (used + count > lower.counts[level - 1]) return false;  // guard: codes-in-counts
    lower.used[level - 1] = static_cast<std::uint16_t>(used + count);
    std::uint64_t below = here;
    for (std::uint32_t bit = 0; bit < widths.bits[level]; ++bit) {
      const std::uint64_t packed = read_bits(lower.planes[plane++], used, count);
      const std::uint64_t spread = _pdep_u64(packed, here);
      add_plane(ranks, spread, bit);
      below &= spread;
    }
    here = below;
  }
  return true;
}

TS_AVX2 bool read_literals(std::uint32_t last, std::uint32_t lane, std::uint64_t here,
                           LowerLevelsReader& lower, TileValues& values) {
  for (; here != 0; here &= here - 1) {
    const std::uint32_t used = lower.used[last]++;
    if (used >= lower.counts[last]) return false;  // guard: literals-in-counts
    values.symbols[element_of_pair(lane, first_of(here))] =
        static_cast<std::uint8_t>(lower.literals[used]);
  }
  return true;
}

class Avx2Kernels final : public TileKernels {
 public:
  const char* name() const noexcept override { return "avx2"; }

  TS_AVX2 void split(ElementKind kind, const std::byte* elements, std::byte* byte_planes,
                     std::size_t plane_stride, TileValues& values) const noexcept override {
    split_tile(kind, elements, byte_planes, plane_stride, values);
  }

  TS_AVX2 void merge(ElementKind kind, const std::byte* byte_planes, std::size_t plane_stride,
                     const TileValues& values, std::byte* elements) const noexcept override {
    merge_tile(kind, byte_planes, plane_stride, values, elements);
  }

  TS_AVX2 void write_bits(const TileValues& values, std::uint32_t planes,
                          std::byte* target) const noexcept override {
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
      const __m256i bytes = load_lane(values.bits.data(), lane);
      for (std::uint32_t plane = 0; plane < planes; ++plane) {
        const __m256i raised = _mm256_slli_epi16(bytes, static_cast<int>(7 - plane));
        const int word = _mm256_movemask_epi8(raised);
        std::memcpy(target + (plane * std::size_t{kLanes} + lane) * sizeof word, &word,
                    sizeof word);
      }
    }
  }

  TS_AVX2 void read_bit_planes(const std::byte* source, std::uint32_t planes,
                               TileValues& values) const noexcept override {
    for (std::uint32_t lane = 0; lane < kLanes; lane += 2) {
      LanePair sums{_mm256_setzero_si256(), _mm256_setzero_si256()};
      for (std::uint32_t plane = 0; plane < planes; ++plane) {
        add_plane(sums, read_pair(source, plane, lane), plane);
      }
      store_lane(values.bits.data(), lane, sums.low);
      store_lane(values.bits.data(), lane + 1, sums.high);
    }
  }

  TS_AVX2 void encode_symbols(const RankCode& code, const TileValues& values, std::byte* first,
                              LowerLevelsWriter& lower) const noexcept override {
    for (std::uint32_t lane = 0; lane < kLanes; lane += 2) {
      const LanePair pair{load_lane(values.symbols.data(), lane),
                          load_lane(values.symbols.data(), lane + 1)};
      const LevelBits bits =
          bits_of_level<kFirstWidth>(pair, code.symbols.data(), ~std::uint64_t{0});
      for (std::uint32_t bit = 0; bit < kFirstWidth; ++bit) {
        write_pair(first, bit, lane, bits.planes[bit]);
      }
      append_lower(code, values, lane, pair, bits.below, lower);
    }
  }

  TS_AVX2 bool decode_symbols(const RankCode& code, const std::byte* first,
                              LowerLevelsReader& lower,
                              TileValues& values) const noexcept override {
    const __m256i symbols = _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(code.symbols.data())));
    for (std::uint32_t lane = 0; lane < kLanes; lane += 2) {
      LanePair ranks{_mm256_setzero_si256(), _mm256_setzero_si256()};
      std::uint64_t here = ~std::uint64_t{0};
      for (std::uint32_t bit = 0; bit < kFirstWidth; ++bit) {
        const std::uint64_t plane = read_pair(first, bit, lane);
        add_plane(ranks, plane, bit);
        here &= plane;
      }
      if (!add_lower(code.widths, ranks, here, lower)) return false;
      store_lane(values.symbols.data(), lane, _mm256_shuffle_epi8(symbols, ranks.low));
      store_lane(values.symbols.data(), lane + 1, _mm256_shuffle_epi8(symbols, ranks.high));
      if (!read_literals(code.widths.count - 1, lane, here, lower, values)) return false;
    }
    return true;
  }

  TS_AVX2 std::uint32_t count_escapes(const std::byte* planes, std::uint32_t width,
                                      std::uint32_t count) const noexcept override {
    std::uint32_t sum = 0;
    for (std::uint32_t first = 0; first < count; first += 64) {
      sum += count_of(escapes_from(planes, width, count, first));
    }
    return sum;
  }
};

/// Zen 1 and 2 run pext and pdep as microcode, a bit at a time: plain code is faster there.
bool runs_well() noexcept {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("bmi2") != 0 &&
         __builtin_cpu_supports("popcnt") != 0 && __builtin_cpu_is("znver1") == 0 &&
         __builtin_cpu_is("znver2") == 0;
}

}  // namespace

const TileKernels* avx2_kernels() noexcept {
  static const Avx2Kernels kernels;
  static const bool usable = runs_well();
  return usable ? &kernels : nullptr;
}

}  // namespace tensorstream

// Symbols from their codes: the part of frame_decode.cu between bit planes and elements.
//
// The symbols that reach a level lie one behind the other in shared memory, so a level is its codes
// and the symbols of the level below it, which take the places of its escapes. The counts say where
// each level ends, so levels are decoded from the last up to the second, in place, and the tiles of
// the first level then only count their escapes.

constexpr u32 kTileElements = 1024;
constexpr u32 kChunkElements = 8192;

/// What a warp works in.
struct alignas(16) WarpMemory {
  u32 ranked[8];                        // the code's 16 symbols; windows read past them
  u32 symbols[kChunkElements / 4 + 4];  // those of a level's elements, in order
};

/// How four elements with codes of two bits pick their symbols, by the codes' low bits (0 to 3 of
/// the index) and high bits (4 to 7).
struct QuadTable {
  u32 quads[256];

  /// The selectors of pick_bytes() between what the level names and the deeper symbols; from bit 16
  /// on, how many of these are taken.
  static TS_DEVICE u32 quad(u32 index) {
    u32 selectors = 0;
    u32 escapes = 0;
    TS_UNROLL
    for (u32 i = 0; i < 4; ++i) {
      const u32 code = ((index >> i) & 1) | ((index >> (3 + i)) & 2);
      selectors |= (code == 3 ? 4 + escapes : code) << (4 * i);
      escapes += code == 3 ? 1 : 0;
    }
    return selectors | escapes << 16;
  }
};

/// `mask`'s bits of `ones_from`, the others of `zeros_from`.
TS_DEVICE u32 select_bits(u32 mask, u32 ones_from, u32 zeros_from) {
  return (mask & ones_from) | (~mask & zeros_from);
}

/// The four bytes from `offset` on.
TS_DEVICE u32 window(const u32* bytes, u32 offset) {
  return shift_pair(bytes[offset / 4], bytes[offset / 4 + 1], 8 * offset);
}

/// The eight bits of byte `index` as the lowest bits of eight nibbles.
TS_DEVICE u32 spread_byte(u32 word, u32 index) {
  u32 bits = pick_bytes(word, 0, 0x4440 + index);
  bits = (bits | bits << 12) & 0x000F000F;
  bits = (bits | bits << 6) & 0x03030303;
  return (bits | bits << 3) & 0x11111111;
}

/// 32 codes of a level, of which each bit is in a word of its own.
template <u32 kWidth>
struct Codes {
  u32 planes[kWidth];

  TS_DEVICE u32 escapes() const {
    u32 all = planes[0];
    TS_UNROLL
    for (u32 plane = 1; plane < kWidth; ++plane) all &= planes[plane];
    return all;
  }
};

/// The bytes of 32 symbols, or of what is made of them.
struct Symbols {
  u32 words[8];
};

/// The symbols that 32 codes of two bits name; as name_symbols().
TS_DEVICE Symbols look_up_symbols(u32 low, u32 high, u32 named, const QuadTable& table,
                                  const u32* deeper, u32 next) {
  const u32 even = select_bits(0x0F0F0F0F, low, high << 4);
  const u32 odd = select_bits(0x0F0F0F0F, low >> 4, high);
  Symbols symbols;
  TS_UNROLL
  for (u32 quad = 0; quad < 8; ++quad) {
    const u32 index = pick_bytes(quad % 2 == 0 ? even : odd, 0, 0x4440 + quad / 2);
    const u32 picks = table.quads[index];
    symbols.words[quad] = pick_bytes(named, window(deeper, next), picks);
    next += picks >> 16;
  }
  return symbols;
}

/// The symbols that `codes` name. Those of the escapes are in `deeper` from byte `next` on.
template <u32 kWidth>
TS_DEVICE Symbols name_symbols(const Codes<kWidth>& codes, Pair named, const QuadTable& table,
                               const u32* deeper, u32 next) {
  // One bit is two that are the same: code 0, or the escape.
  if (kWidth <= 2) {
    return look_up_symbols(codes.planes[0], codes.planes[kWidth - 1], named.low, table, deeper,
                           next);
  }
  Symbols symbols;
  TS_UNROLL
  for (u32 octet = 0; octet < 4; ++octet) {
    u32 selectors = spread_byte(codes.planes[0], octet);
    u32 escaped = selectors;
    TS_UNROLL
    for (u32 plane = 1; plane < kWidth; ++plane) {
      const u32 bits = spread_byte(codes.planes[plane], octet);
      escaped &= bits;
      selectors += bits << plane;
    }
    // In each nibble, how many of the octet's escapes come before it.
    const u32 before = escaped * 0x11111110;
    const u32 in_low_half = (before >> 16) & 15;
    const u32 before_in_half = before - in_low_half * 0x11110000;
    // An escape takes the next of the deeper symbols, every other element its own.
    const u32 takes = select_bits(escaped * 15, before_in_half, 0x76547654);
    symbols.words[2 * octet] =
        pick_bytes(window(deeper, next), pick_bytes(named.low, named.high, selectors), takes);
    symbols.words[2 * octet + 1] =
        pick_bytes(window(deeper, next + in_low_half),
                   pick_bytes(named.low, named.high, selectors >> 16), takes >> 16);
    next += (escaped * 0x11111111) >> 28;
  }
  return symbols;
}

/// 32 bits from a byte on that is anywhere.
TS_DEVICE u32 load_bits(const u8* from) {
  const u32 past = static_cast<u32>(reinterpret_cast<u64>(from) & 3);
  const u8* const aligned = from - past;
  return shift_pair(load4(aligned), load4(aligned + 4), 8 * past);
}

/// A level below the first, in its chunk.
struct Level {
  const u8* planes;
  u32 count;         // of elements that reach it
  u32 escapes;       // of those, how many reach the level below it, or are literals
  u32 first_ranked;  // the rank of its code 0
};

/// What each lane has of the level's codes in a round of a tile's elements; zeros behind the last.
template <u32 kWidth>
TS_DEVICE void load_codes(const Level& level, u32 round, Lanes<Codes<kWidth>>& codes) {
  const u32 plane_bytes = (level.count + 7) / 8;
  each_lane([&](u32 lane) {
    const u32 first = round * kTileElements + lane * 32;
    const u32 left = first < level.count ? level.count - first : 0;
    const u32 there = left >= 32 ? 0xFFFFFFFFU : (1U << left) - 1;
    TS_UNROLL
    for (u32 plane = 0; plane < kWidth; ++plane) {
      const u8* const from = level.planes + plane * plane_bytes + first / 8;
      codes[lane].planes[plane] = left == 0 ? 0 : load_bits(from) & there;
    }
  });
}

/// Puts the symbols of a level's elements where those of its escapes are. From the last element to
/// the first, as no escape's symbol lies behind the place that it goes to.
template <u32 kWidth>
TS_DEVICE void decode_level(const Level& level, const QuadTable& table, WarpMemory& memory) {
  const Pair named = {window(memory.ranked, level.first_ranked),
                      window(memory.ranked, level.first_ranked + 4)};
  u32 next = level.escapes;
  u32 round = (level.count + kTileElements - 1) / kTileElements;
  Lanes<Codes<kWidth>> ahead;
  if (round > 0) load_codes(level, round - 1, ahead);
  while (round-- > 0) {
    Lanes<Codes<kWidth>> codes = ahead;
    Lanes<Symbols> symbols;
    Lanes<u32> escapes;
    Lanes<u32> before;
    if (round > 0) load_codes(level, round - 1, ahead);
    each_lane([&](u32 lane) { escapes[lane] = ones(codes[lane].escapes()); });
    next -= sum_before(escapes, before);
    each_lane([&](u32 lane) {
      symbols[lane] = name_symbols(codes[lane], named, table, memory.symbols, next + before[lane]);
    });
    sync_warp();
    each_lane([&](u32 lane) {
      const u32 first = round * kTileElements + lane * 32;
      if (first >= level.count) return;
      u8* const to = reinterpret_cast<u8*>(memory.symbols) + first;
      const u32* const words = symbols[lane].words;
      store16(to, words[0], words[1], words[2], words[3]);
      store16(to + 16, words[4], words[5], words[6], words[7]);
    });
    sync_warp();
  }
}

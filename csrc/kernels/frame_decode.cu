// Frames decoded by a GPU: a warp takes a chunk, the lower levels first. The format is in
// csrc/codec/FORMAT.md, and the names are its.
//
// In the text that is compiled warp.cu and frame_symbols.cu come before this; there is no header
// besides. The tests compile the two of frames for the host too, with a warp of their own. What
// each lane does for itself is in each_lane().

#ifndef TS_WARPS_A_BLOCK
#define TS_WARPS_A_BLOCK 4
#endif
#ifndef TS_BLOCKS_AT_LEAST
#define TS_BLOCKS_AT_LEAST 6
#endif

constexpr u32 kRawChunkBytes = 16384;
constexpr u32 kPlaneBytes = 128;
constexpr u32 kHeaderBytes = 64;

/// As the host's table has it.
struct BatchedFrame {
  u64 encoded_offset;
  u64 decoded_offset;
};

constexpr u32 kMostRuns = 32;  // a lane for each

/// Likewise.
struct FrameRuns {
  u64 tables[kMostRuns];
  u64 encoded[kMostRuns];
  u32 first_rows[kMostRuns];
};

/// One of them, as a row has it.
struct FrameRun {
  const BatchedFrame* table;
  const u8* encoded;
  u32 first_row;
};

/// The last run that begins at this row or before it: a lane looks at one.
TS_DEVICE FrameRun run_of(const FrameRuns& runs, u32 row) {
  Lanes<u32> reached;
  Lanes<u32> before;
  each_lane([&](u32 lane) { reached[lane] = row >= runs.first_rows[lane] ? 1 : 0; });
  const u32 run = sum_before(reached, before) - 1;
  return {reinterpret_cast<const BatchedFrame*>(runs.tables[run]),
          reinterpret_cast<const u8*>(runs.encoded[run]), runs.first_rows[run]};
}

/// Rows of four bytes to columns, twice: of words 0 to 3 and of words 4 to 7. Word `g` and `4 + g`
/// of the result are what a lane has of group `g`.
TS_DEVICE Symbols in_groups(const Symbols& rows) {
  Symbols columns;
  TS_UNROLL
  for (u32 half = 0; half < 8; half += 4) {
    const u32 low01 = pick_bytes(rows.words[half], rows.words[half + 1], 0x5140);
    const u32 low23 = pick_bytes(rows.words[half + 2], rows.words[half + 3], 0x5140);
    const u32 high01 = pick_bytes(rows.words[half], rows.words[half + 1], 0x7362);
    const u32 high23 = pick_bytes(rows.words[half + 2], rows.words[half + 3], 0x7362);
    columns.words[half] = pick_bytes(low01, low23, 0x5410);
    columns.words[half + 1] = pick_bytes(low01, low23, 0x7632);
    columns.words[half + 2] = pick_bytes(high01, high23, 0x5410);
    columns.words[half + 3] = pick_bytes(high01, high23, 0x7632);
  }
  return columns;
}

/// The eight bytes that the bit planes of a lane have of a group.
template <u32 kBits>
TS_DEVICE Pair group_bits(const u32* planes, u32 group) {
  u32 nibbles = 0;
  TS_UNROLL
  for (u32 plane = 0; plane < kBits; ++plane) {
    nibbles |= ((planes[plane] >> group) & 0x11111111) << plane;
  }
  const u32 even = nibbles & 0x0F0F0F0F;
  const u32 odd = (nibbles >> 4) & 0x0F0F0F0F;
  return {pick_bytes(even, odd, 0x5140), pick_bytes(even, odd, 0x7362)};
}

/// What a lane has of a tile.
template <u32 kBytePlanes, u32 kBits>
struct TileInput {
  Codes<2> codes;
  u32 bits[kBits == 0 ? 1 : kBits];
  Pair bytes[kBytePlanes == 0 ? 1 : kBytePlanes][4];
};

/// Eight elements behind each other: kBytePlanes + 1 pairs of words.
template <u32 kBytePlanes>
struct Octet {
  u32 words[2 * (kBytePlanes + 1)];
};

/// Puts elements together, their highest bytes in `tops`, and turns them back.
TS_DEVICE Octet<0> merge(const TileInput<0, 3>&, u32, Pair tops) {
  return {{select_bits(0x7F7F7F7F, tops.low >> 1, tops.low << 7),
           select_bits(0x7F7F7F7F, tops.high >> 1, tops.high << 7)}};
}
TS_DEVICE Octet<0> merge(const TileInput<0, 4>&, u32 group, Pair tops) {
  return merge(TileInput<0, 3>{}, group, tops);
}

/// As above for two elements a word: the word is turned as a whole, so that each element's sign,
/// its lowest bit, comes to the other's place; so the signs change places before.
template <u32 kBits>
TS_DEVICE Octet<1> merge(const TileInput<1, kBits>& input, u32 group, Pair tops) {
  Octet<1> octet;
  TS_UNROLL
  for (u32 half = 0; half < 2; ++half) {
    const u32 low = half == 0 ? input.bytes[0][group].low : input.bytes[0][group].high;
    const u32 top = half == 0 ? tops.low : tops.high;
    const u32 crossed = select_bits(0xFEFEFEFE, low, pick_bytes(low, 0, 0x2301));
    const u32 first = pick_bytes(crossed, top, 0x5140);
    const u32 second = pick_bytes(crossed, top, 0x7362);
    octet.words[2 * half] = shift_pair(first, first, 1);
    octet.words[2 * half + 1] = shift_pair(second, second, 1);
  }
  return octet;
}

TS_DEVICE Octet<3> merge(const TileInput<3, 0>& input, u32 group, Pair tops) {
  Octet<3> octet;
  TS_UNROLL
  for (u32 half = 0; half < 2; ++half) {
    u32 bytes[4];
    TS_UNROLL
    for (u32 plane = 0; plane < 3; ++plane) {
      const Pair pair = input.bytes[plane][group];
      bytes[plane] = half == 0 ? pair.low : pair.high;
    }
    bytes[3] = half == 0 ? tops.low : tops.high;
    TS_UNROLL
    for (u32 two = 0; two < 2; ++two) {
      const u32 order = two == 0 ? 0x5140 : 0x7362;
      const u32 low = pick_bytes(bytes[0], bytes[1], order);
      const u32 high = pick_bytes(bytes[2], bytes[3], order);
      const u32 first = pick_bytes(low, high, 0x5410);
      const u32 second = pick_bytes(low, high, 0x7632);
      octet.words[4 * half + 2 * two] = shift_pair(first, first, 1);
      octet.words[4 * half + 2 * two + 1] = shift_pair(second, second, 1);
    }
  }
  return octet;
}

/// Writes the first `left` of eight elements, or all.
template <u32 kBytePlanes>
TS_DEVICE void store_octet(const Octet<kBytePlanes>& octet, u8* to, u32 left) {
  constexpr u32 kElementBytes = kBytePlanes + 1;
  if (left >= 8) {
    if (kElementBytes == 1) {
      store8(to, octet.words[0], octet.words[1]);
      return;
    }
    TS_UNROLL
    for (u32 word = 0; word + 3 < 2 * kElementBytes; word += 4) {
      store16(to + 4 * word, octet.words[word], octet.words[word + 1], octet.words[word + 2],
              octet.words[word + 3]);
    }
    return;
  }
  TS_UNROLL
  for (u32 byte = 0; byte < 8 * kElementBytes; ++byte) {
    if (byte < left * kElementBytes) {
      to[byte] = static_cast<u8>(octet.words[byte / 4] >> (8 * (byte % 4)));
    }
  }
}

/// A chunk of a coded frame, and where it goes.
struct ChunkPlace {
  const u8* encoded;
  u8* decoded;
  u32 elements;

  TS_DEVICE u32 tiles() const { return (elements + kTileElements - 1) / kTileElements; }
};

template <u32 kBytePlanes, u32 kBits>
TS_DEVICE void load_tile(const ChunkPlace& chunk, u32 tile, u32 lane,
                         TileInput<kBytePlanes, kBits>& input) {
  const u32 tiles = chunk.tiles();
  const u8* const words = chunk.encoded + kBytePlanes * tiles * kTileElements +
                          tile * (kBits + 2) * kPlaneBytes + lane * 4;
  TS_UNROLL
  for (u32 plane = 0; plane < kBits; ++plane)
    input.bits[plane] = load4(words + plane * kPlaneBytes);
  input.codes.planes[0] = load4(words + kBits * kPlaneBytes);
  input.codes.planes[1] = load4(words + (kBits + 1) * kPlaneBytes);
  const u8* const bytes = chunk.encoded + tile * kTileElements + lane * 8;
  TS_UNROLL
  for (u32 plane = 0; plane < kBytePlanes; ++plane) {
    TS_UNROLL
    for (u32 group = 0; group < 4; ++group) {
      input.bytes[plane][group] = load8(bytes + plane * tiles * kTileElements + group * 256);
    }
  }
}

/// The first level: its escapes' symbols are in `memory`, in the order of the tiles.
template <u32 kBytePlanes, u32 kBits>
TS_DEVICE void decode_tiles(const ChunkPlace& chunk, const QuadTable& table,
                            const WarpMemory& memory) {
  constexpr u32 kElementBytes = kBytePlanes + 1;
  // A tile is loaded while the one before it is decoded; three byte planes of two tiles would be
  // too many registers.
  constexpr bool kAhead = kBytePlanes < 3;
  const Pair named = {memory.ranked[0], 0};
  const u32 tiles = chunk.tiles();
  u32 next = 0;
  Lanes<TileInput<kBytePlanes, kBits>> ahead;
  if (kAhead) each_lane([&](u32 lane) { load_tile(chunk, 0, lane, ahead[lane]); });
  TS_NO_UNROLL
  for (u32 tile = 0; tile < tiles; ++tile) {
    Lanes<TileInput<kBytePlanes, kBits>> input;
    Lanes<u32> escapes;
    Lanes<u32> before;
    each_lane([&](u32 lane) {
      if (kAhead) {
        input[lane] = ahead[lane];
        if (tile + 1 < tiles) load_tile(chunk, tile + 1, lane, ahead[lane]);
      } else {
        load_tile(chunk, tile, lane, input[lane]);
      }
      escapes[lane] = ones(input[lane].codes.escapes());
    });
    const u32 all = sum_before(escapes, before);
    each_lane([&](u32 lane) {
      const TileInput<kBytePlanes, kBits>& own = input[lane];
      const Symbols tops =
          in_groups(name_symbols(own.codes, named, table, memory.symbols, next + before[lane]));
      TS_UNROLL
      for (u32 group = 0; group < 4; ++group) {
        Pair top = {tops.words[group], tops.words[4 + group]};
        if (kBits != 0) {
          const Pair bits = group_bits<kBits>(own.bits, group);
          top.low |= bits.low;
          top.high |= bits.high;
        }
        const u32 first = tile * kTileElements + group * 256 + lane * 8;
        if (first < chunk.elements) {
          store_octet(merge(own, group, top), chunk.decoded + u64{first} * kElementBytes,
                      chunk.elements - first);
        }
      }
    });
    next += all;
  }
}

/// A frame, as its header says it is.
struct Frame {
  const u8* encoded;
  u8* decoded;
  u32 decoded_bytes;
  u32 chunks;
  u32 kind;  // the four bytes from 28 on
  TS_DEVICE bool raw() const { return (kind & 0xFF) == 0; }
  TS_DEVICE u32 element_bytes() const { return (kind >> 8) & 0xFF; }
  TS_DEVICE u32 byte_planes() const { return element_bytes() - 1; }
  /// Bit planes of an element's highest byte, under its symbol.
  TS_DEVICE u32 bits() const { return 8 - ((kind >> 16) & 0xFF); }
  TS_DEVICE u32 levels() const { return kind >> 24; }
  TS_DEVICE const u8* chunk(u32 index) const {
    return encoded + u64{load4(encoded + kHeaderBytes + 4 * index)} * 16;
  }
};

TS_DEVICE Frame frame_at(const u8* encoded, u8* decoded) {
  const Pair sizes = load8(encoded + 16);
  const Pair rest = load8(encoded + 24);
  return {encoded, decoded, sizes.high, rest.low, rest.high};
}

TS_DEVICE void copy_chunk(const Frame& frame, u32 index) {
  const u8* const from = frame.chunk(index);
  const u64 first = u64{index} * kRawChunkBytes;
  u8* const to = frame.decoded + first;
  const u32 left = frame.decoded_bytes - static_cast<u32>(first);
  const u32 bytes = left < kRawChunkBytes ? left : kRawChunkBytes;
  each_lane([&](u32 lane) {
    for (u32 at = lane * 16; at + 16 <= bytes; at += 512) copy16(to + at, from + at);
    const u32 at = bytes / 16 * 16 + lane;
    if (at < bytes) to[at] = from[at];
  });
}

/// Brings the code's symbols and the chunk's literals to `memory`, moved up by `bits` to where the
/// highest byte of an element has its symbol.
TS_DEVICE void load_symbols(const Frame& frame, u32 bits, const u8* literals, u32 count,
                            WarpMemory& memory) {
  sync_warp();  // the chunk before this one is done
  each_lane([&](u32 lane) {
    // Whole words: no symbol reaches into the next byte.
    if (lane < 8) memory.ranked[lane] = lane < 4 ? load4(frame.encoded + 48 + lane * 4) << bits : 0;
    u8* const symbols = reinterpret_cast<u8*>(memory.symbols);
    for (u32 i = lane; i < count; i += 32) symbols[i] = static_cast<u8>(literals[i] << bits);
  });
  sync_warp();
}

/// Has the chunk on its way to the second cache.
TS_DEVICE void fetch_early(const u8* from, u32 bytes) {
  each_lane([&](u32 lane) {
    for (u32 at = lane * 128; at < bytes; at += 32 * 128) prefetch(from + at);
  });
}

/// All levels but the first: leaves in `memory` the symbols of those that reach the second.
TS_DEVICE void decode_lower_levels(const Frame& frame, u32 index, const ChunkPlace& chunk,
                                   const QuadTable& table, WarpMemory& memory) {
  const u32 levels = frame.levels();
  const u8* const counts = frame.encoded + kHeaderBytes + 8 * frame.chunks + 4 + 2 * index * levels;
  const auto count_of = [&](u32 level) { return load2(counts + 2 * (level - 1)); };
  const auto width_of = [&](u32 level) { return u32{frame.encoded[32 + level]}; };

  u32 at = chunk.tiles() * (frame.byte_planes() * kTileElements + (frame.bits() + 2) * kPlaneBytes);
  u32 ranked = 3;
  for (u32 level = 1; level < levels; ++level) {
    at += width_of(level) * ((count_of(level) + 7) / 8);
    ranked += (1U << width_of(level)) - 1;
  }
  fetch_early(chunk.encoded, at + count_of(levels));
  u32 escapes = count_of(levels);
  load_symbols(frame, frame.bits(), chunk.encoded + at, escapes, memory);
  for (u32 level = levels - 1; level > 0; --level) {
    const u32 width = width_of(level);
    const u32 count = count_of(level);
    at -= width * ((count + 7) / 8);
    ranked -= (1U << width) - 1;
    const Level place = {chunk.encoded + at, count, escapes, ranked};
    if (width == 1) decode_level<1>(place, table, memory);
    if (width == 2) decode_level<2>(place, table, memory);
    if (width == 3) decode_level<3>(place, table, memory);
    escapes = count;
  }
}

TS_DEVICE void decode_chunk(const Frame& frame, u32 index, const QuadTable& table,
                            WarpMemory& memory) {
  if (frame.raw()) return copy_chunk(frame, index);
  const u32 first = index * kChunkElements;
  const u32 left = frame.decoded_bytes / frame.element_bytes() - first;
  const ChunkPlace chunk = {frame.chunk(index), frame.decoded + u64{first} * frame.element_bytes(),
                            left < kChunkElements ? left : kChunkElements};
  decode_lower_levels(frame, index, chunk, table, memory);
  if (frame.byte_planes() == 3) return decode_tiles<3, 0>(chunk, table, memory);  // f32
  if (frame.byte_planes() == 1) {
    if (frame.bits() == 0) return decode_tiles<1, 0>(chunk, table, memory);  // bf16
    return decode_tiles<1, 3>(chunk, table, memory);                         // f16
  }
  if (frame.bits() == 4) return decode_tiles<0, 4>(chunk, table, memory);  // e4m3
  return decode_tiles<0, 3>(chunk, table, memory);                         // e5m2
}

#ifndef TS_WARP_ON_HOST
/// A row of blocks a frame: blockIdx.y counts the frames of all runs.
extern "C" __global__ void __launch_bounds__(32 * TS_WARPS_A_BLOCK, TS_BLOCKS_AT_LEAST)
    ts_decode_frames(const __grid_constant__ FrameRuns runs, u8* decoded) {
  __shared__ WarpMemory memories[TS_WARPS_A_BLOCK];
  __shared__ QuadTable quads;
  for (u32 i = threadIdx.x; i < 256; i += 32 * TS_WARPS_A_BLOCK) {
    quads.quads[i] = QuadTable::quad(i);
  }
  __syncthreads();
  const u32 warp = threadIdx.x / 32;
  const FrameRun run = run_of(runs, blockIdx.y);
  const BatchedFrame entry = run.table[blockIdx.y - run.first_row];
  const Frame frame = frame_at(run.encoded + entry.encoded_offset, decoded + entry.decoded_offset);
  for (u32 index = blockIdx.x * TS_WARPS_A_BLOCK + warp; index < frame.chunks;
       index += gridDim.x * TS_WARPS_A_BLOCK) {
    decode_chunk(frame, index, quads, memories[warp]);
  }
}
#endif

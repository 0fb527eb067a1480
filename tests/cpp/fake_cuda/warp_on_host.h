// A warp on a host: what kernels take from it, lane by lane. Included before a kernel's source.
#pragma once

#include <bit>
#include <cstring>

#define TS_WARP_ON_HOST
#define TS_DEVICE inline
#define TS_UNROLL
#define TS_NO_UNROLL

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

template <typename Value>
struct Lanes {
  Value values[32] = {};
  Value& operator[](u32 lane) { return values[lane]; }
};

template <typename Work>
void each_lane(const Work& work) {
  for (u32 lane = 0; lane < 32; ++lane) work(lane);
}

/// Lanes are in step anyway. What a lane reads that another has not written yet by rights does show
/// as one that is out of order.
inline void sync_warp() {}

inline u32 sum_before(Lanes<u32>& values, Lanes<u32>& before) {
  u32 sum = 0;
  for (u32 lane = 0; lane < 32; ++lane) {
    before[lane] = sum;
    sum += values[lane];
  }
  return sum;
}

inline u32 ones(u32 word) { return static_cast<u32>(std::popcount(word)); }

inline u32 pick_bytes(u32 low, u32 high, u32 selectors) {
  const u64 bytes = low | u64{high} << 32U;
  u32 picked = 0;
  for (u32 i = 0; i < 4; ++i) {
    const u32 selector = (selectors >> (4 * i)) & 15U;
    u32 byte = static_cast<u32>(bytes >> (8 * (selector & 7U))) & 0xFFU;
    // The highest bit asks for the byte's sign, eight times.
    if (selector >= 8) byte = (byte & 0x80U) != 0 ? 0xFFU : 0;
    picked |= byte << (8 * i);
  }
  return picked;
}

inline u32 shift_pair(u32 low, u32 high, u32 bits) {
  return static_cast<u32>((low | u64{high} << 32U) >> (bits % 32U));
}

struct Pair {
  u32 low, high;
};

inline u32 load2(const u8* from) {
  u16 value = 0;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline u32 load4(const u8* from) {
  u32 value = 0;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline Pair load8(const u8* from) { return {load4(from), load4(from + 4)}; }
inline void prefetch(const u8*) {}
inline void store8(u8* to, u32 a, u32 b) {
  const u32 words[] = {a, b};
  std::memcpy(to, words, sizeof words);
}
inline void store16(u8* to, u32 a, u32 b, u32 c, u32 d) {
  store8(to, a, b);
  store8(to + 8, c, d);
}
inline void copy16(u8* to, const u8* from) { std::memcpy(to, from, 16); }

// What a kernel takes of a GPU: its warps, and instructions that C++ has no words for. The first
// part of each kernel's text. Compiled by NVRTC and by nvcc, without any header.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define TS_DEVICE __device__ __forceinline__
#define TS_UNROLL _Pragma("unroll")
#define TS_NO_UNROLL _Pragma("unroll 1")

/// A variable of each lane.
template <typename Value>
struct Lanes {
  Value own;
  TS_DEVICE Value& operator[](u32) { return own; }
};

template <typename Work>
TS_DEVICE void each_lane(const Work& work) {
  work(threadIdx.x % 32);
}

TS_DEVICE void sync_warp() { __syncwarp(); }

/// Of each lane, the sum of the values of those before it. The sum of all is returned.
TS_DEVICE u32 sum_before(Lanes<u32>& values, Lanes<u32>& before) {
  u32 sum = values.own;
  TS_UNROLL
  for (u32 distance = 1; distance < 32; distance *= 2) {
    const u32 other = __shfl_up_sync(0xFFFFFFFFU, sum, distance);
    if (threadIdx.x % 32 >= distance) sum += other;
  }
  before.own = sum - values.own;
  return __shfl_sync(0xFFFFFFFFU, sum, 31);
}

TS_DEVICE u32 ones(u32 word) { return static_cast<u32>(__popc(word)); }
/// Bytes of `low` (0 to 3) and `high` (4 to 7) as the four nibbles of `selectors` say.
TS_DEVICE u32 pick_bytes(u32 low, u32 high, u32 selectors) {
  return __byte_perm(low, high, selectors);
}
/// The low word of high:low >> (bits % 32).
TS_DEVICE u32 shift_pair(u32 low, u32 high, u32 bits) { return __funnelshift_r(low, high, bits); }

struct Pair {
  u32 low, high;
};
TS_DEVICE u32 load2(const u8* from) { return __ldg(reinterpret_cast<const u16*>(from)); }
TS_DEVICE u32 load4(const u8* from) { return __ldg(reinterpret_cast<const u32*>(from)); }
TS_DEVICE Pair load8(const u8* from) {
  const uint2 pair = __ldg(reinterpret_cast<const uint2*>(from));
  return {pair.x, pair.y};
}
TS_DEVICE void prefetch(const u8* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
TS_DEVICE void store8(u8* to, u32 a, u32 b) { *reinterpret_cast<uint2*>(to) = make_uint2(a, b); }
TS_DEVICE void store16(u8* to, u32 a, u32 b, u32 c, u32 d) {
  *reinterpret_cast<uint4*>(to) = make_uint4(a, b, c, d);
}
TS_DEVICE void copy16(u8* to, const u8* from) {
  *reinterpret_cast<uint4*>(to) = __ldg(reinterpret_cast<const uint4*>(from));
}

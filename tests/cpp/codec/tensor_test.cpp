// Whole tensors: frames, threads, levels, random access.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "codec/element_layout.h"
#include "codec/frame_decoder.h"
#include "codec/frames.h"
#include "codec/tensor_decoder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

const TensorName kName{"a file", "a tensor"};

Bytes decoded(std::span<const std::byte> encoded, std::uint64_t size_bytes, unsigned threads = 1) {
  Bytes out(size_bytes);
  decode_tensor(parse_tensor(encoded, size_bytes, kName), out, threads, kName);
  return out;
}

TEST(Tensor, AnEmptyOneHasNoFrames) {
  EXPECT_TRUE(encoded_tensor(Dtype::kBf16, {}, 9).empty());
  EXPECT_TRUE(decoded({}, 0).empty());
  EXPECT_EQ(encoded_bound(0), 0U);
}

TEST(Tensor, TheNumberOfThreadsChangesNothing) {
  const Bytes weights = gaussian_weights(Dtype::kBf16, 7 * kFrameBytes / 2 / 2 + 777, 0.02);
  const Bytes encoded = encoded_tensor(Dtype::kBf16, weights, 9);
  for (const unsigned threads : {0U, 1U, 2U, 3U, 5U, 64U}) {
    EXPECT_EQ(encoded_tensor(Dtype::kBf16, weights, 9, threads), encoded) << threads;
    EXPECT_EQ(decoded(encoded, weights.size(), threads), weights) << threads;
  }
}

TEST(Tensor, LevelsOfOneKindAreEqualAndHigherOnesSmaller) {
  const Bytes weights = gaussian_weights(Dtype::kBf16, 300'000, 0.02);
  std::vector<Bytes> by_level;
  for (std::uint32_t level = 0; level <= 9; ++level) {
    by_level.push_back(encoded_tensor(Dtype::kBf16, weights, level));
    EXPECT_EQ(decoded(by_level.back(), weights.size()), weights) << level;
  }
  EXPECT_GT(by_level[0].size(), weights.size());
  for (const std::size_t level : {1U, 4U, 7U}) {
    EXPECT_LT(by_level[level].size(), by_level[level - 1].size());
    EXPECT_EQ(by_level[level], by_level[level + 1]);
    EXPECT_EQ(by_level[level], by_level[level + 2]);
  }
  EXPECT_THROW(CompressionLevel(10), ConfigError);
}

TEST(Tensor, AFrameThatDoesNotPayIsRawAmongOthers) {
  Bytes weights = gaussian_weights(Dtype::kBf16, kFrameBytes, 0.02);
  std::ranges::copy(random_bytes(kFrameBytes), weights.begin());
  const Bytes encoded = encoded_tensor(Dtype::kBf16, weights, 9);
  const auto frames = parse_tensor(encoded, weights.size(), kName);
  ASSERT_EQ(frames.size(), 2U);
  EXPECT_EQ(frames[0].header().kind, FrameKind::kRaw);
  EXPECT_EQ(frames[1].header().kind, FrameKind::kCoded);
  EXPECT_EQ(decoded(encoded, weights.size()), weights);
}

TEST(Tensor, OneThatDoesNotPayAsAWholeIsRaw) {
  Bytes weights = random_bytes(20 * kFrameBytes);
  std::ranges::copy(gaussian_weights(Dtype::kBf16, kFrameBytes / 2, 0.02), weights.begin());
  const Bytes encoded = encoded_tensor(Dtype::kBf16, weights, 9, 2);
  for (const FrameView& frame : parse_tensor(encoded, weights.size(), kName)) {
    EXPECT_EQ(frame.header().kind, FrameKind::kRaw);
  }
  EXPECT_LE(encoded.size(), encoded_bound(weights.size()));
  EXPECT_EQ(decoded(encoded, weights.size()), weights);
}

TEST(Tensor, AGainOfThreeInAHundredPays) {
  EXPECT_TRUE(pays(970, 1000));
  EXPECT_FALSE(pays(971, 1000));
  EXPECT_FALSE(pays(1, 1));
}

TEST(Tensor, RoomThatIsTooSmallIsRefused) {
  const Bytes weights(1000);
  Bytes out(encoded_bound(weights.size()) - 1);
  EXPECT_THROW(encode_tensor({Dtype::kBf16, CompressionLevel(9), 1}, weights, out), ConfigError);
  EXPECT_THROW(encoded_bound(std::numeric_limits<std::uint64_t>::max()), UnsupportedError);
}

TEST(Tensor, ChunksAreDecodedInAnyOrder) {
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kF32, Dtype::kF8E4M3, Dtype::kU8}) {
    const Bytes weights = gaussian_weights(dtype, 30'001, usual_sigma(dtype));
    const Bytes frame = encode_frame(dtype, weights);
    const FrameView view = parsed(frame);
    Bytes out(weights.size());
    for (std::uint32_t i = view.header().chunks; i-- > 0;) {
      const auto part = std::span(out).subspan(view.decoded_offset(i), view.decoded_bytes(i));
      EXPECT_FALSE(decode_chunk(view, i, part));
    }
    EXPECT_EQ(out, weights);
  }
}

TEST(Tensor, PartsOfAFrameAreAligned) {
  for (const Dtype dtype : kFloats) {
    const Bytes weights = gaussian_weights(dtype, 30'001, usual_sigma(dtype));
    const Bytes frame = encode_frame(dtype, weights);
    const FrameView view = parsed(frame);
    EXPECT_EQ(frame.size() % kFrameAlignment, 0U);
    for (std::uint32_t i = 0; i < view.header().chunks; ++i) {
      const auto offset = static_cast<std::uint64_t>(view.chunk(i).data() - frame.data());
      EXPECT_EQ(offset % kFrameAlignment, 0U);
    }
  }
}

TEST(Layouts, AreFoundByTheFieldsThatAFrameGives) {
  for (const Dtype dtype : kFloats) {
    const ElementLayout layout = *layout_of(dtype);
    const auto found = layout_with(layout.element_bytes, layout.symbol_bits);
    ASSERT_TRUE(found);
    EXPECT_EQ(found->kind, layout.kind);
    EXPECT_EQ(layout.symbol_bits + 8 * layout.byte_planes() + layout.bit_planes(),
              8U * layout.element_bytes);
  }
  EXPECT_FALSE(layout_of(Dtype::kI32));
  EXPECT_FALSE(layout_with(2, 7));
}

}  // namespace
}  // namespace tensorstream

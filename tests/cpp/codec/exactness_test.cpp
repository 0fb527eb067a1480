// What is decoded are the bytes that were encoded, whatever they are.
#include <gtest/gtest.h>

#include <bit>
#include <random>
#include <string>
#include <tuple>

#include "codec/frame_decoder.h"
#include "codec/frame_encoder.h"
#include "codec/tensor_decoder.h"
#include "codec/tensor_encoder.h"
#include "codec/tile_kernels.h"
#include "codec/weights.h"

namespace tensorstream {
namespace {

constexpr std::array kFloats = {Dtype::kBf16, Dtype::kF16, Dtype::kF32, Dtype::kF8E4M3,
                                Dtype::kF8E5M2};

std::vector<const TileKernels*> all_kernels() {
  std::vector<const TileKernels*> kernels = {&portable_kernels()};
  if (avx2_kernels() != nullptr) kernels.push_back(avx2_kernels());
  return kernels;
}

Bytes encode(FrameEncoder& encoder, std::span<const std::byte> bytes) {
  Bytes frame(frame_bound(bytes.size()), std::byte{0xa5});
  frame.resize(encoder.encode(bytes, frame));
  return frame;
}

FrameView parsed(std::span<const std::byte> frame) {
  const auto result = FrameView::parse(frame);
  if (const auto* fault = std::get_if<FrameFault>(&result)) {
    ADD_FAILURE() << "a frame that was just made breaks '" << rule_name(fault->rule) << "'";
  }
  return std::get<FrameView>(result);
}

class Exactness : public ::testing::TestWithParam<std::tuple<Dtype, std::uint32_t>> {
 protected:
  const Dtype dtype_ = std::get<0>(GetParam());
  const CompressionLevel level_{std::get<1>(GetParam())};
  const std::uint32_t element_bytes_ = dtype_bits(dtype_) / 8;

  /// Encodes by each set of kernels, which must agree, and decodes by each.
  FrameKind expect_exact(std::span<const std::byte> bytes) const {
    Bytes first;
    for (const TileKernels* kernels : all_kernels()) {
      FrameEncoder encoder(dtype_, level_, *kernels);
      const Bytes frame = encode(encoder, bytes);
      if (first.empty()) first = frame;
      EXPECT_TRUE(frame == first) << kernels->name() << " encodes otherwise";
      Bytes decoded(bytes.size(), std::byte{0x5a});
      const auto fault = decode_frame(parsed(frame), decoded, *kernels);
      EXPECT_FALSE(fault) << rule_name(fault->rule);
      EXPECT_TRUE(std::ranges::equal(decoded, bytes)) << kernels->name() << " decodes otherwise";
    }
    return parsed(first).header().kind;
  }
};

TEST_P(Exactness, EveryPatternOfAShortType) {
  Bytes bytes;
  const std::uint32_t bits = std::min(16U, 8 * element_bytes_);
  for (std::uint32_t pattern = 0; pattern < 1U << bits; ++pattern) {
    append_element(bytes, pattern << (8 * element_bytes_ - bits), element_bytes_);
  }
  expect_exact(bytes);
  // Among weights, so that the frame is a coded one.
  Bytes among = gaussian_weights(dtype_, 900'000 / element_bytes_, 0.02);
  std::ranges::copy(bytes, among.begin() + static_cast<std::ptrdiff_t>(77 * element_bytes_));
  EXPECT_EQ(expect_exact(among), FrameKind::kCoded);
}

TEST_P(Exactness, RandomBits) {
  EXPECT_EQ(expect_exact(random_bytes(300'000UL / element_bytes_ * element_bytes_)),
            FrameKind::kRaw);
}

INSTANTIATE_TEST_SUITE_P(Types, Exactness,
                         ::testing::Combine(::testing::ValuesIn(kFloats),
                                            ::testing::Values(1, 4, 7)),
                         [](const auto& suite) {
                           return std::string(dtype_torch_name(std::get<0>(suite.param))) +
                                  "_level" + std::to_string(std::get<1>(suite.param));
                         });

}  // namespace
}  // namespace tensorstream

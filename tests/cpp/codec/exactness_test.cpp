// What is decoded are the bytes that were encoded, whatever they are.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <random>
#include <string>
#include <tuple>

#include "codec/frame_decoder.h"
#include "codec/frames.h"
#include "made_bytes/rounds.h"
#include "made_bytes/weights.h"

namespace tensorstream {
namespace {

class Exactness : public ::testing::TestWithParam<std::tuple<Dtype, std::uint32_t>> {
 protected:
  const Dtype dtype_ = std::get<0>(GetParam());
  const CompressionLevel level_{std::get<1>(GetParam())};
  const std::uint32_t element_bytes_ = dtype_bits(dtype_) / 8;

  /// Encodes by each set of kernels, which must agree, and decodes by each. The frame's kind.
  FrameKind expect_exact(std::span<const std::byte> bytes) const {
    Bytes first;
    for (const TileKernels* kernels : all_kernels()) {
      FrameEncoder encoder(dtype_, level_, *kernels);
      const Bytes frame = encode_frame(encoder, bytes);
      if (first.empty()) first = frame;
      EXPECT_TRUE(frame == first) << kernels->name() << " encodes otherwise";
      Bytes decoded(bytes.size(), std::byte{0x5a});
      const auto fault = decode_frame(parsed(frame), decoded, *kernels);
      EXPECT_FALSE(fault) << rule_name(fault->rule);
      EXPECT_TRUE(same_bytes(decoded, bytes)) << kernels->name() << " decodes otherwise";
    }
    return parsed(first).header().kind;
  }

  Bytes elements(std::initializer_list<std::uint32_t> patterns, std::size_t count) const {
    return repeated(std::span(patterns.begin(), patterns.size()), element_bytes_, count);
  }

  /// The bits of 1.0 and of other numbers.
  std::uint32_t rounded(double value) const { return round_to(value, format_of(dtype_)); }
};

TEST_P(Exactness, EveryPatternOfAShortType) {
  Bytes bytes;
  const std::uint32_t bits = std::min(16U, 8 * element_bytes_);
  for (std::uint32_t pattern = 0; pattern < 1U << bits; ++pattern) {
    append_element(bytes, pattern << (8 * element_bytes_ - bits), element_bytes_);
  }
  expect_exact(bytes);
  // Among weights, so that the frame is a coded one.
  Bytes among = gaussian_weights(dtype_, 900'000 / element_bytes_, usual_sigma(dtype_));
  std::ranges::copy(bytes, among.begin() + static_cast<std::ptrdiff_t>(77 * element_bytes_));
  EXPECT_EQ(expect_exact(among), FrameKind::kCoded);
}

TEST_P(Exactness, SpecialNumbersAmongWeights) {
  const FloatFormat format = format_of(dtype_);
  const std::uint32_t sign = 1U << (8 * element_bytes_ - 1);
  const std::uint32_t infinity = ((1U << format.exponent_bits) - 1U) << format.mantissa_bits;
  Bytes bytes = gaussian_weights(dtype_, 40'000, usual_sigma(dtype_));
  std::size_t at = 0;
  for (const std::uint32_t pattern :
       {0U, sign, 1U, sign | 1U, (1U << format.mantissa_bits) - 1U, infinity, sign | infinity,
        infinity | 1U, infinity | (1U << (format.mantissa_bits - 1)),
        sign | infinity | ((1U << format.mantissa_bits) - 1U)}) {
    at += 997;
    Bytes element;
    append_element(element, pattern, element_bytes_);
    std::ranges::copy(element, bytes.begin() + static_cast<std::ptrdiff_t>(at * element_bytes_));
  }
  EXPECT_EQ(expect_exact(bytes), FrameKind::kCoded);
}

TEST_P(Exactness, ConstantsAndTwoSymbols) {
  for (const std::size_t count : {1UL, 1024UL, 8193UL, 100'000UL}) {
    expect_exact(elements({0}, count));
    expect_exact(elements({~0U}, count));
    expect_exact(elements({rounded(1)}, count));
    expect_exact(elements({rounded(1), rounded(-2)}, count));
    expect_exact(elements({rounded(0.5), 0, 0}, count));
  }
}

TEST_P(Exactness, EveryExponentEquallyOften) {
  std::mt19937 random(3);
  const FloatFormat format = format_of(dtype_);
  Bytes bytes;
  for (std::uint32_t i = 0; i < 100'000; ++i) {
    append_element(bytes, i << format.mantissa_bits | (random() & 3U), element_bytes_);
  }
  EXPECT_EQ(expect_exact(bytes), FrameKind::kRaw);
}

TEST_P(Exactness, ElementsThatTheSampleDidNotShow) {
  // The first of eight tiles is what the lower levels count; the others hold other exponents, which
  // have no rank where a type has more than the code names.
  Bytes bytes;
  for (std::uint32_t i = 0; i < 200'000; ++i) {
    const bool counted = i % kChunkElements < kTileElements;
    append_element(bytes, rounded(counted ? 1 : std::ldexp(1.0, -4 - static_cast<int>(i % 4))),
                   element_bytes_);
  }
  expect_exact(bytes);
}

TEST_P(Exactness, LiteralsInEveryChunkOfACodedFrame) {
  Bytes bytes = gaussian_weights(dtype_, 100'000, usual_sigma(dtype_));
  std::mt19937 random(4);
  for (std::size_t i = 0; i < 3000; ++i) {
    const std::size_t element = random() % 100'000;
    bytes[element * element_bytes_ + element_bytes_ - 1] = static_cast<std::byte>(random());
  }
  EXPECT_EQ(expect_exact(bytes), FrameKind::kCoded);
}

TEST_P(Exactness, RandomBits) {
  EXPECT_EQ(expect_exact(random_bytes(300'000UL / element_bytes_ * element_bytes_)),
            FrameKind::kRaw);
}

TEST_P(Exactness, RandomTensors) {
  std::mt19937 random(5);
  for (int i = 0; i < 60; ++i) {
    const std::size_t count = 1 + random() % (3 * kChunkElements);
    const double sigma = std::ldexp(usual_sigma(dtype_), static_cast<int>(random() % 4) - 2);
    expect_exact(gaussian_weights(dtype_, count, sigma, random()));
  }
}

std::string type_name(Dtype dtype) { return std::string(dtype_torch_name(dtype)); }

INSTANTIATE_TEST_SUITE_P(Types, Exactness,
                         ::testing::Combine(::testing::ValuesIn(kFloats),
                                            ::testing::Values(1, 4, 7)),
                         [](const auto& suite) {
                           return type_name(std::get<0>(suite.param)) + "_level" +
                                  std::to_string(std::get<1>(suite.param));
                         });

class ExactTails : public ::testing::TestWithParam<Dtype> {};

TEST_P(ExactTails, EveryLengthUpToTwoChunks) {
  const std::uint32_t element_bytes = dtype_bits(GetParam()) / 8;
  const Bytes weights = gaussian_weights(GetParam(), 2 * kChunkElements, usual_sigma(GetParam()));
  FrameEncoder encoder(GetParam(), CompressionLevel(CompressionLevel::kSmallest));
  Bytes frame(frame_bound(weights.size()));
  for (std::size_t count = 1; count <= 2 * kChunkElements; count += kSanitized ? 11 : 1) {
    const auto bytes = std::span(weights).first(count * element_bytes);
    const std::uint64_t size_bytes = encoder.encode(bytes, frame);
    Bytes decoded(bytes.size());
    ASSERT_FALSE(decode_frame(parsed(std::span(frame).first(size_bytes)), decoded)) << count;
    ASSERT_TRUE(same_bytes(decoded, bytes)) << count;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, ExactTails, ::testing::ValuesIn(kFloats),
                         [](const auto& suite) { return type_name(suite.param); });

TEST(ExactBytes, TypesThatAreNotCoded) {
  for (const Dtype dtype : {Dtype::kI8, Dtype::kI64, Dtype::kF64, Dtype::kBool, Dtype::kF4}) {
    const Bytes bytes(5000, std::byte{1});
    const Bytes frame = encode_frame(dtype, bytes);
    EXPECT_EQ(parsed(frame).header().kind, FrameKind::kRaw);
    Bytes decoded(bytes.size());
    EXPECT_FALSE(decode_frame(parsed(frame), decoded));
    EXPECT_EQ(decoded, bytes);
  }
}

TEST(ExactBytes, HalfAnElementAtTheEnd) {
  Bytes bytes = gaussian_weights(Dtype::kBf16, 50'000, 0.02);
  bytes.push_back(std::byte{7});
  const Bytes frame = encode_frame(Dtype::kBf16, bytes);
  Bytes decoded(bytes.size());
  EXPECT_FALSE(decode_frame(parsed(frame), decoded));
  EXPECT_EQ(decoded, bytes);
}

}  // namespace
}  // namespace tensorstream

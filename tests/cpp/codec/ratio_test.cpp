// How few bytes weights take: all of the frames is counted.
#include <gtest/gtest.h>

#include <cmath>

#include "codec/frames.h"

namespace tensorstream {
namespace {

constexpr std::size_t kWeights = 1U << 20U;

double bits_a_weight(Dtype dtype, std::uint32_t level, double sigma) {
  const Bytes weights = gaussian_weights(dtype, kWeights, sigma);
  return 8.0 * static_cast<double>(encoded_tensor(dtype, weights, level).size()) / kWeights;
}

TEST(Ratio, Bf16AtEveryDeviationOfAnOctave) {
  for (int step = 0; step < 6; ++step) {
    const double sigma = 0.01 * std::exp2(step / 6.0);
    EXPECT_LT(bits_a_weight(Dtype::kBf16, 9, sigma), 10.655) << sigma;
    EXPECT_LT(bits_a_weight(Dtype::kBf16, 6, sigma), 10.685) << sigma;
    EXPECT_LT(bits_a_weight(Dtype::kBf16, 3, sigma), 10.73) << sigma;
  }
}

TEST(Ratio, OtherTypes) {
  for (const double octave : {0.0, 0.33, 0.67}) {
    const double sigma = 0.02 * std::exp2(octave);
    EXPECT_LT(bits_a_weight(Dtype::kF16, 9, sigma) / 16, 0.86) << sigma;
    EXPECT_LT(bits_a_weight(Dtype::kF32, 9, sigma) / 32, 0.84) << sigma;
    EXPECT_LT(bits_a_weight(Dtype::kF8E5M2, 9, sigma) / 8, 0.715) << sigma;
    EXPECT_LT(bits_a_weight(Dtype::kF8E4M3, 9, 50 * sigma) / 8, 0.84) << sigma;
  }
}

TEST(Ratio, ARawTensorTakesAThousandthMore) {
  const Bytes noise = random_bytes(5 * kFrameBytes / 2);
  EXPECT_LT(static_cast<double>(encoded_tensor(Dtype::kBf16, noise, 9).size()),
            1.001 * static_cast<double>(noise.size()));
}

}  // namespace
}  // namespace tensorstream

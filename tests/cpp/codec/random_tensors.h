// Tensors of random types, lengths and values, each told by a seed and its number alone.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "codec/element_layout.h"
#include "codec/frame_format.h"
#include "made_bytes/quick_random.h"
#include "tensorstream/dtype.h"

namespace tensorstream {

/// How the values of a tensor lie.
enum class Values : std::uint8_t {
  kGaussian,
  kConstant,
  kRandomBits,
  kFewExponents,   // 1 to 24 of them, as likely as each other
  kRareExponents,  // Gaussian, with a share of any bits at all
  kTilesApart,     // tiles of scales of their own: what is rare in one is all of another
  kSparse,         // zeros, and a few others; also infinities and NaNs
  kCount,
};

inline const char* name_of(Values values) {
  static constexpr std::array kNames = {"Gaussian",      "constant",       "random bits",
                                        "few exponents", "rare exponents", "tiles apart",
                                        "sparse"};
  static_assert(kNames.size() == static_cast<std::size_t>(Values::kCount));
  return kNames.at(static_cast<std::size_t>(values));
}

/// Types of every layout, and one that is stored as it is.
inline constexpr std::array kFuzzedTypes = {Dtype::kBf16,   Dtype::kBf16, Dtype::kF16,
                                            Dtype::kF16,    Dtype::kF32,  Dtype::kF8E4M3,
                                            Dtype::kF8E5M2, Dtype::kI8};
inline constexpr std::array<std::uint32_t, 3> kFuzzedLevels = {1, 4, 7};
inline constexpr std::uint64_t kMostElements = 8192;

/// What a tensor is.
struct RandomTensor {
  Dtype dtype = Dtype::kU8;
  std::uint32_t level = 1;
  Values values = Values::kGaussian;
  std::uint64_t elements = 1;

  std::uint64_t size_bytes() const { return elements * dtype_bits(dtype) / 8; }
};

/// Makes tensors. Holds Gaussian numbers that all of them are cut from. Thread-safe.
class RandomTensors {
 public:
  explicit RandomTensors(std::uint64_t seed) : seed_(seed), gaussian_(kGaussians) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    for (float& value : gaussian_) value = normal(random);
  }

  /// Of four lengths three are any up to 8 Ki, and one is as likely to be short as long.
  RandomTensor describe(std::uint64_t number) const {
    QuickRandom random = random_of(number);
    RandomTensor tensor;
    tensor.dtype = kFuzzedTypes.at(random.below(kFuzzedTypes.size()));
    tensor.level = kFuzzedLevels.at(random.below(kFuzzedLevels.size()));
    tensor.values = static_cast<Values>(random.below(static_cast<std::uint64_t>(Values::kCount)));
    const std::uint64_t longest =
        random.below(4) != 0 ? kMostElements : std::uint64_t{1} << random.below(14);
    tensor.elements = 1 + random.below(longest);
    return tensor;
  }

  /// Fills `out`, which has the tensor's size.
  void fill(std::uint64_t number, const RandomTensor& tensor, std::span<std::byte> out) const {
    QuickRandom random = random_of(number);
    for (int i = 0; i < 8; ++i) random();  // those of describe(), and more
    const auto layout = layout_of(tensor.dtype);
    if (!layout || tensor.values == Values::kRandomBits) return fill_with_bits(random, out);
    const std::uint32_t element_bytes = layout->element_bytes;
    ElementMaker make(*layout, tensor.values, random, gaussian_);
    for (std::uint64_t i = 0; i < tensor.elements; ++i) {
      const std::uint32_t bits = make.next(i);
      std::memcpy(out.data() + i * element_bytes, &bits, element_bytes);
    }
  }

 private:
  static constexpr std::size_t kGaussians = std::size_t{1} << 20U;

  /// The elements of one tensor, one after the other.
  class ElementMaker {
   public:
    ElementMaker(const ElementLayout& layout, Values values, QuickRandom& random,
                 std::span<const float> gaussian)
        : layout_(layout),
          values_(values),
          random_(random),
          gaussian_(gaussian),
          at_(random.below(gaussian.size())),
          scale_(random_scale()),
          constant_(static_cast<std::uint32_t>(random())),
          rare_(random.share() * random.share()),
          exponents_(1 + random.below(24)),
          first_exponent_(static_cast<std::uint32_t>(random.below(256))) {}

    std::uint32_t next(std::uint64_t element) {
      switch (values_) {
        case Values::kConstant:
          return constant_;
        case Values::kFewExponents:
          return with_exponent(first_exponent_ +
                               static_cast<std::uint32_t>(random_.below(exponents_)));
        case Values::kRareExponents:
          return random_.share() < rare_ ? static_cast<std::uint32_t>(random_()) : gaussian();
        case Values::kTilesApart:
          if (element % kTileElements == 0 && random_.below(4) == 0) scale_ = random_scale();
          return gaussian();
        case Values::kSparse:
          if (random_.share() >= rare_) return 0;
          return random_.below(8) == 0 ? with_exponent(0xFFU) : gaussian();
        default:
          return gaussian();
      }
    }

   private:
    float random_scale() { return std::ldexp(1.0F, static_cast<int>(random_.below(60)) - 40); }
    std::uint32_t mantissa_bits() const { return layout_.kept_bits() - 1; }
    std::uint32_t symbol_mask() const { return (1U << layout_.symbol_bits) - 1; }

    std::uint32_t with_exponent(std::uint32_t exponent) {
      const std::uint64_t any = random_();
      const std::uint32_t kept = (1U << mantissa_bits()) - 1;
      const auto sign = static_cast<std::uint32_t>(any >> 63U) << (8U * layout_.element_bytes - 1);
      return sign | ((exponent & symbol_mask()) << mantissa_bits()) |
             (static_cast<std::uint32_t>(any) & kept);
    }
    std::uint32_t gaussian() {
      const float value = scale_ * gaussian_[at_++ % gaussian_.size()];
      std::uint32_t bits = 0;
      std::memcpy(&bits, &value, sizeof bits);
      const int bias = (1 << (layout_.symbol_bits - 1)) - 1;
      const int exponent = static_cast<int>((bits >> 23U) & 0xFFU) - 127 + bias;
      const auto clamped =
          static_cast<std::uint32_t>(std::clamp(exponent, 0, static_cast<int>(symbol_mask())));
      const std::uint32_t mantissa = (bits & 0x7FFFFFU) >> (23U - mantissa_bits());
      return ((bits >> 31U) << (8U * layout_.element_bytes - 1)) | (clamped << mantissa_bits()) |
             mantissa;
    }

    const ElementLayout layout_;
    const Values values_;
    QuickRandom& random_;
    const std::span<const float> gaussian_;
    std::size_t at_;
    float scale_;
    const std::uint32_t constant_;
    const double rare_;
    const std::uint64_t exponents_;
    const std::uint32_t first_exponent_;
  };

  QuickRandom random_of(std::uint64_t number) const {
    return QuickRandom(QuickRandom(seed_ ^ (number * 0xD1342543DE82EF95U))());
  }
  static void fill_with_bits(QuickRandom& random, std::span<std::byte> out) {
    for (std::size_t at = 0; at < out.size(); at += sizeof(std::uint64_t)) {
      const std::uint64_t bits = random();
      std::memcpy(out.data() + at, &bits, std::min(sizeof bits, out.size() - at));
    }
  }

  const std::uint64_t seed_;
  std::vector<float> gaussian_;
};

}  // namespace tensorstream

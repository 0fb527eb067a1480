#include "tensorstream/dtype.h"

#include <gtest/gtest.h>

#include <vector>

namespace tensorstream {
namespace {

std::vector<Dtype> all_dtypes() {
  return {
#define TS_DTYPE_ENUMERATOR(id, file_name, torch_name, bits) Dtype::id,
      TS_DTYPES(TS_DTYPE_ENUMERATOR)
#undef TS_DTYPE_ENUMERATOR
  };
}

TEST(Dtype, EveryTypeIsFoundByBothOfItsNames) {
  for (const Dtype dtype : all_dtypes()) {
    EXPECT_EQ(dtype_from_file_name(dtype_file_name(dtype)), dtype);
    EXPECT_EQ(dtype_from_torch_name(dtype_torch_name(dtype)), dtype);
  }
}

TEST(Dtype, NamesAndBitsAreThoseOfSafetensorsAndTorch) {
  EXPECT_EQ(dtype_file_name(Dtype::kBf16), "BF16");
  EXPECT_EQ(dtype_torch_name(Dtype::kBf16), "bfloat16");
  EXPECT_EQ(dtype_bits(Dtype::kBf16), 16U);
  EXPECT_EQ(dtype_bits(Dtype::kF4), 4U);
  EXPECT_EQ(dtype_bits(Dtype::kC64), 64U);
  EXPECT_EQ(dtype_bits(Dtype::kBool), 8U);
}

TEST(Dtype, UnknownNamesAreNothing) {
  EXPECT_EQ(dtype_from_file_name("bf16"), std::nullopt);
  EXPECT_EQ(dtype_from_file_name(""), std::nullopt);
  EXPECT_EQ(dtype_from_torch_name("BF16"), std::nullopt);
}

}  // namespace
}  // namespace tensorstream

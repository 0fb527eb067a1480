#include "engine/group_layout.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "base/units.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

std::vector<TensorSpec> tensors_of(const std::vector<std::uint64_t>& sizes) {
  std::vector<TensorSpec> tensors;
  for (const std::uint64_t size : sizes) {
    tensors.push_back({"t" + std::to_string(tensors.size()), Dtype::kU8, size, {}});
  }
  return tensors;
}

TEST(GroupLayout, TensorsFollowEachOtherAlignedInTheGroupsOrder) {
  const auto tensors = tensors_of({1, 512, 513, 0, 4000});
  const GroupLayout layout = lay_out({"g", {2, 0, 3, 1, 4}, Residency::kAny}, tensors);
  EXPECT_EQ(layout.offsets_bytes, (std::vector<std::uint64_t>{0, 1024, 1536, 1536, 2048}));
  EXPECT_EQ(layout.size_bytes, 8192U);
}

TEST(GroupLayout, AGroupWithoutBytesTakesNone) {
  EXPECT_EQ(lay_out({"g", {}, Residency::kAny}, {}).size_bytes, 0U);
  EXPECT_EQ(lay_out({"g", {0}, Residency::kAny}, tensors_of({0})).size_bytes, 0U);
}

TEST(GroupLayout, UnknownTensorsAndImpossibleSizesAreRefused) {
  EXPECT_THROW(lay_out({"g", {1}, Residency::kAny}, tensors_of({5})), ConfigError);
  const std::uint64_t huge = ~std::uint64_t{0};
  EXPECT_THROW(lay_out({"g", {0}, Residency::kAny}, tensors_of({huge})), ConfigError);
  const std::uint64_t large = std::uint64_t{1} << 48U;
  EXPECT_THROW(lay_out({"g", {0, 1, 2}, Residency::kAny}, tensors_of({large, large, large})),
               ConfigError);
}

TEST(GroupLayout, FootprintsAreTheGroups) {
  const std::vector<Group> groups = {{"a", {0}, Residency::kAny}, {"b", {1}, Residency::kByRows}};
  const auto found = footprints(groups, tensors_of({5, 5000}));
  ASSERT_EQ(found.size(), 2U);
  EXPECT_EQ(found[0].name, "a");
  EXPECT_EQ(found[0].size_bytes, 4096U);
  EXPECT_EQ(found[1].size_bytes, 8192U);
  EXPECT_EQ(found[1].residency, Residency::kByRows);
}

}  // namespace
}  // namespace tensorstream

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
  const auto tensors = tensors_of({1, 449, 450, 0, 4000});
  const GroupLayout layout = lay_out({"g", {2, 0, 3, 1, 4}, Residency::kAny}, tensors);
  EXPECT_EQ(layout.offsets_bytes, (std::vector<std::uint64_t>{0, 1024, 1536, 1536, 2048}))
      << "each has room to be moved by less than a cache line";
  EXPECT_EQ(layout.size_bytes, 8192U);
}

TEST(GroupLayout, OnAHostTensorsBeginWithinALineAsInTheModel) {
  auto tensors = tensors_of({100, 449, 512, 0});
  tensors[0].line_offset_bytes = 8;
  tensors[1].line_offset_bytes = 63;
  const Group group = {"g", {0, 1, 2, 3}, Residency::kAny};
  GroupLayout layout = lay_out(group, tensors);
  const std::uint64_t size_bytes = layout.size_bytes;
  lie_as_in_model(layout, group, tensors);
  EXPECT_EQ(layout.offsets_bytes, (std::vector<std::uint64_t>{8, 512 + 63, 1024, 2048}));
  EXPECT_EQ(layout.size_bytes, size_bytes);
  tensors[2].line_offset_bytes = 64;
  EXPECT_THROW(lie_as_in_model(layout, group, tensors), ConfigError);
}

TEST(GroupLayout, AGroupWithoutBytesTakesNone) {
  EXPECT_EQ(lay_out({"g", {}, Residency::kAny}, {}).size_bytes, 0U);
  EXPECT_EQ(lay_out({"g", {0}, Residency::kAny}, tensors_of({0})).size_bytes, 0U);
}

TEST(GroupLayout, ADriverTakesWholePagesButForSmallPieces) {
  EXPECT_EQ(taken_bytes(0, 2_MiB), 0U);
  EXPECT_EQ(taken_bytes(1, 2_MiB), kGroupAlignment);
  EXPECT_EQ(taken_bytes(1_MiB - 1, 2_MiB), 1_MiB);
  EXPECT_EQ(taken_bytes(1_MiB, 2_MiB), 2_MiB);
  EXPECT_EQ(taken_bytes(2_MiB + 1, 2_MiB), 4_MiB);
  EXPECT_EQ(taken_bytes(2_MiB + 1, 64_KiB), 2_MiB + 64_KiB);
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

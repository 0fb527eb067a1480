#include "engine/group_layout.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/units.h"
#include "engine/source_table.h"
#include "io/reader.h"
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

TEST(GroupLayout, OnAHostTensorsLieWithinALineAsTheirSourcesDo) {
  auto tensors = tensors_of({100, 200, 300, 400, 0});
  tensors[2].dtype = Dtype::kF32;
  tensors[3].dtype = Dtype::kF32;
  alignas(64) static constexpr std::array<std::byte, 512> kBytes{};
  const auto memory = [&](std::size_t begin, std::size_t size) {
    return create_memory_reader("a buffer", std::span(kBytes).subspan(begin, size), nullptr);
  };
  tensors[0].extents = {{0, 8, 100}};
  tensors[1].extents = {{1, 70, 200}};
  tensors[2].extents = {{0, 12, 300}};
  tensors[3].extents = {{1, 6, 400}};
  const SourceTable sources({memory(0, 512), memory(0, 512)}, tensors);
  const Group group = {"g", {0, 1, 2, 3, 4}, Residency::kAny};
  GroupLayout layout = lay_out(group, tensors);
  const std::uint64_t size_bytes = layout.size_bytes;
  lie_as_sources_do(layout, group, sources);
  EXPECT_EQ(layout.offsets_bytes, (std::vector<std::uint64_t>{8, 512 + 6, 1024 + 12, 1536, 2048}))
      << "the fourth would be misaligned for its type, the last has no bytes";
  EXPECT_EQ(layout.size_bytes, size_bytes);
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

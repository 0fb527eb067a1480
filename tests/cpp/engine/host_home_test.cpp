#include "engine/host_home.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "base/units.h"
#include "device/host_device.h"
#include "engine/test_model.h"
#include "platform/no_threads.h"

namespace tensorstream {
namespace {

using ::testing::Each;
using ::testing::Eq;

TEST(HostHome, BytesBetweenTensorsAreNoNumbers) {
  const auto bytes = std::make_shared<const Bytes>(150, std::byte{7});
  const std::vector<TensorSpec> tensors = {{"first", Dtype::kU8, 100, {{0, 0, 100}}},
                                           {"second", Dtype::kU8, 50, {{0, 100, 50}}}};
  const SourceTable sources({memory_reader("both", bytes)}, tensors);
  const Group group{"group", {0, 1}};
  const GroupLayout layout = lay_out(group, tensors, ComputePlace::kAccelerator);
  const auto device = create_host_device();
  const auto home = make_home(*device, group, layout, sources, {});
  ASSERT_EQ(layout.offsets_bytes, (std::vector<std::uint64_t>{0, 512}));
  EXPECT_THAT(home->bytes().first(100), Each(Eq(std::byte{7})));
  EXPECT_THAT(home->bytes().subspan(100, 412), Each(Eq(std::byte{0xFF})));
  EXPECT_THAT(home->bytes().subspan(512, 50), Each(Eq(std::byte{7})));
}

TEST(HostHome, IsMadeByTheCallerWhereThereAreNoThreads) {
  const std::uint64_t size = 64_MiB;
  const auto bytes = std::make_shared<const Bytes>(size, std::byte{7});
  const std::vector<TensorSpec> tensors = {{"large", Dtype::kU8, size, {{0, 0, size}}}};
  const SourceTable sources({memory_reader("large", bytes)}, tensors);
  const Group group{"group", {0}};
  const GroupLayout layout = lay_out(group, tensors, ComputePlace::kAccelerator);
  const auto device = create_host_device();
  const NoThreads none;
  const auto home = make_home(*device, group, layout, sources, {});
  EXPECT_TRUE(std::ranges::equal(home->bytes().first(size), *bytes));
}

}  // namespace
}  // namespace tensorstream

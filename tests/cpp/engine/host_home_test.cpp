#include "engine/host_home.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "base/units.h"
#include "device/host_device.h"
#include "engine/held_reader.h"
#include "engine/home_table.h"
#include "engine/open_engine.h"
#include "engine/test_model.h"
#include "io/faulty_reader.h"
#include "made_bytes/weights.h"
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

/// Homes of one group of one tensor of 5000 bytes.
struct OneHome {
  explicit OneHome(std::shared_ptr<Reader> reader)
      : sources({std::move(reader)}, {{"first", Dtype::kU8, 5000, {{0, 0, 5000}}}}) {}

  SourceTable sources;
  const std::vector<Group> groups = {{"group", {0}}};
  const std::vector<GroupLayout> layouts = {
      lay_out(groups[0], sources.tensors(), ComputePlace::kAccelerator)};
  const std::unique_ptr<Device> device = create_host_device();
  HomeTable homes{*device, sources, groups, layouts};
};

TEST(HomeTable, TwoThreadsBringOneGroupOnce) {
  const auto bytes = std::make_shared<const Bytes>(5000, std::byte{7});
  const auto held = std::make_shared<HeldReader>(memory_reader("a disk", bytes));
  OneHome one(held);
  std::atomic<int> brought = 0;
  std::atomic<int> done = 0;
  const auto bring = [&] {
    if (one.homes.bring(0, {})) ++brought;
    ++done;
  };
  {
    const std::jthread first(bring);
    held->wait_until_begun();
    const std::jthread second(bring);
    EXPECT_TRUE(stays_false([&] { return held->reads() > 1 || done > 0; }));
    held->open();
  }
  EXPECT_EQ(brought, 1);
  EXPECT_NE(one.homes.device_address(0, one.sources.extents(0)[0]), nullptr);
}

TEST(HomeTable, WhereOneThreadCannotBringAGroupTheOtherTries) {
  const auto bytes = std::make_shared<const Bytes>(5000, std::byte{7});
  const auto held = std::make_shared<HeldReader>(std::make_shared<FaultyReader>(
      create_memory_reader("a disk", *bytes, bytes), Faults{.failing_read = 1}));
  OneHome one(held);
  {
    const std::jthread first([&] { EXPECT_THROW(one.homes.bring(0, {}), IoError); });
    held->wait_until_begun();
    const std::jthread second([&] { EXPECT_TRUE(one.homes.bring(0, {})); });
    held->open();
  }
  EXPECT_NE(one.homes.device_address(0, one.sources.extents(0)[0]), nullptr);
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
  EXPECT_TRUE(same_bytes(home->bytes().first(size), *bytes));
}

}  // namespace
}  // namespace tensorstream

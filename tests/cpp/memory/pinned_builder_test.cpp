// Pinned memory of a size that shows only as it is filled.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "device/gate.h"
#include "made_bytes/weights.h"
#include "memory/device_kinds.h"
#include "memory/fake_device.h"
#include "memory/pinned_memory.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

const std::uint64_t kPage = page_size_bytes();

using PinnedBuilderOnDevice = OnMemoryDevice;
TS_ON_EACH_MEMORY_DEVICE(PinnedBuilderOnDevice);

TEST_P(PinnedBuilderOnDevice, PartsArriveFromOneRegistration) {
  const std::vector<std::uint64_t> sizes = {1, 511, 0, 4097, 1'234'567, 3_MiB, 7};
  PinnedBuilder builder(*device_, 8_MiB, "weights", nullptr);
  std::vector<Bytes> sources;
  std::vector<std::span<std::byte>> parts;
  for (const std::uint64_t size : sizes) {
    sources.push_back(numbered_bytes(size, static_cast<int>(parts.size())));
    parts.push_back(builder.take(size));
    ASSERT_EQ(parts.back().size(), size);
    EXPECT_EQ(std::bit_cast<std::uint64_t>(parts.back().data()) % kTensorAlignment, 0U);
    EXPECT_TRUE(std::ranges::all_of(parts.back(), [](std::byte b) { return b == std::byte{0}; }));
    std::ranges::copy(sources.back(), parts.back().begin());
  }
  const PinnedMemory memory = builder.finish();
  EXPECT_EQ(std::bit_cast<std::uint64_t>(memory.data()) % kHugePageBytes, 0U);
  EXPECT_EQ(memory.data() + memory.size_bytes(), parts.back().data() + parts.back().size());
  EXPECT_EQ(memory.pinned_bytes(), GetParam().pins ? memory.size_bytes() : 0);
  const auto stream = device_->create_stream();
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto offset = static_cast<std::uint64_t>(parts[i].data() - memory.data());
    EXPECT_EQ(memory.is_pinned(offset, sizes[i]), GetParam().pins) << "part " << i;
    const auto target = allocate_open(std::max<std::uint64_t>(sizes[i], 1));
    if (sizes[i] != 0) stream->copy_to_device(target->data(), parts[i].data(), sizes[i]);
    stream->synchronize();
    EXPECT_TRUE(read(target->data(), sizes[i]) == sources[i]) << "part " << i;
  }
}

class PinnedBuilderTest : public ::testing::Test {
 protected:
  ~PinnedBuilderTest() override {
    EXPECT_EQ(device_.live_registrations(), 0);
    EXPECT_EQ(budget_->used_bytes(), 0U);
  }

  FakeDevice device_;
  const std::shared_ptr<Budget> budget_ = Budget::create(10 * kPage);
};

TEST_F(PinnedBuilderTest, ThePagesOfWhatIsTakenAreCharged) {
  std::optional<PinnedBuilder> builder(std::in_place, device_, 100 * kPage, "weights", budget_);
  EXPECT_EQ(budget_->used_bytes(), 0U);
  const std::span<std::byte> first = builder->take(kPage - 1);
  EXPECT_EQ(budget_->used_bytes(), kPage);
  const std::span<std::byte> second = builder->take(5);
  EXPECT_EQ(second.data(), first.data() + kPage);
  EXPECT_EQ(budget_->used_bytes(), 2 * kPage);
  static_cast<void>(builder->take(6));
  EXPECT_EQ(budget_->used_bytes(), 2 * kPage);
  const PinnedMemory memory = builder->finish();
  builder.reset();
  EXPECT_EQ(budget_->used_bytes(), 2 * kPage);
  EXPECT_EQ(memory.size_bytes(), kPage + kTensorAlignment + 6);
  ASSERT_EQ(device_.asked().size(), 1U);
  EXPECT_EQ(device_.asked().front().size(), 2 * kPage) << "what was not taken is not registered";
}

TEST_F(PinnedBuilderTest, APartThatTheBudgetRefusesLeavesTheOthers) {
  PinnedBuilder builder(device_, 100 * kPage, "weights", budget_);
  const std::span<std::byte> part = builder.take(4 * kPage);
  try {
    static_cast<void>(builder.take(7 * kPage));
    FAIL();
  } catch (const BudgetError& error) {
    EXPECT_THAT(error.what(), HasSubstr("weights needs"));
  }
  EXPECT_EQ(budget_->used_bytes(), 4 * kPage);
  EXPECT_EQ(builder.take(6 * kPage).data(), part.data() + part.size());
  const PinnedMemory memory = builder.finish();
  EXPECT_EQ(memory.size_bytes(), 10 * kPage);
}

TEST_F(PinnedBuilderTest, PartsOfMoreThanWasSaidAreBudgetErrors) {
  PinnedBuilder builder(device_, 2 * kPage, "weights", nullptr);
  static_cast<void>(builder.take(kPage + 1));
  EXPECT_THROW(static_cast<void>(builder.take(kPage)), BudgetError);
  EXPECT_THROW(static_cast<void>(builder.take(~std::uint64_t{0})), BudgetError);
  EXPECT_EQ(builder.finish().size_bytes(), kPage + 1);
  EXPECT_THROW(static_cast<void>(builder.take(1)), BudgetError) << "it is finished";
}

TEST_F(PinnedBuilderTest, WithoutPartsThereIsNothing) {
  for (const std::uint64_t most : {std::uint64_t{0}, 4 * kPage}) {
    PinnedBuilder builder(device_, most, "weights", budget_);
    EXPECT_TRUE(builder.take(0).empty());
    EXPECT_EQ(builder.finish().size_bytes(), 0U);
  }
  EXPECT_TRUE(device_.asked().empty());
}

TEST_F(PinnedBuilderTest, WhatTheSystemDoesNotPinIsPageable) {
  device_.refused_registration = 1;
  PinnedBuilder builder(device_, 8 * kPage, "weights", budget_);
  std::ranges::fill(builder.take(3 * kPage), std::byte{5});
  const PinnedMemory memory = builder.finish();
  EXPECT_EQ(memory.pinned_bytes(), 0U);
  EXPECT_TRUE(std::ranges::all_of(memory.bytes(), [](std::byte b) { return b == std::byte{5}; }));
}

TEST_F(PinnedBuilderTest, OneThatIsNotFinishedGivesAllBack) {
  PinnedBuilder builder(device_, 8 * kPage, "weights", budget_);
  static_cast<void>(builder.take(3 * kPage));
  EXPECT_EQ(budget_->used_bytes(), 3 * kPage);
}

TEST_F(PinnedBuilderTest, ManyThreadsTakeParts) {
  constexpr int kThreads = 4;
  constexpr int kParts = 200;
  PinnedBuilder builder(device_, kThreads * kParts * 2 * kTensorAlignment, "weights", nullptr);
  {
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&builder, thread] {
        for (int i = 0; i < kParts; ++i) {
          std::ranges::fill(builder.take(kTensorAlignment + 1), static_cast<std::byte>(thread + 1));
        }
      });
    }
  }
  const PinnedMemory memory = builder.finish();
  std::vector<int> counts(kThreads + 1);
  for (int i = 0; i < kThreads * kParts; ++i) {
    const auto part = memory.bytes().subspan(static_cast<std::size_t>(i) * 2 * kTensorAlignment,
                                             kTensorAlignment + 1);
    EXPECT_TRUE(std::ranges::all_of(part, [&](std::byte b) { return b == part.front(); }));
    ++counts.at(std::to_integer<std::size_t>(part.front()));
  }
  EXPECT_EQ(counts, (std::vector<int>{0, kParts, kParts, kParts, kParts}));
}

}  // namespace
}  // namespace tensorstream

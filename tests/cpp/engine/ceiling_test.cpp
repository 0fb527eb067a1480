// What torch's allocator asks for, by the fake driver: charged, made room for, refused, given back.
#include "engine/ceiling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/log.h"
#include "engine/ceiling_fixture.h"

namespace tensorstream {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST_F(CeilingTest, WhatTorchHoldsIsChargedUntilItIsGivenBack) {
  open(everything_of(spec_) + 40'000, Pressure::kAdaptive);
  const std::uint64_t before = budget_->used_bytes();
  void* const data = alloc(10'000);
  ASSERT_NE(data, nullptr);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % kTensorAlignment, 0U);
  EXPECT_EQ(budget_->used_bytes(), before + 10'000);
  EXPECT_EQ(ceiling_->statistics().torch_bytes, 10'000U);
  free(data);
  EXPECT_EQ(budget_->used_bytes(), before);
  EXPECT_EQ(ceiling_->statistics().torch_bytes, 0U);
  EXPECT_EQ(ceiling_->statistics().peak_torch_bytes, 10'000U);
}

TEST_F(CeilingTest, ResidentsGiveWayAndTheCeilingHoldsByTheDriversCount) {
  model_ = equal_model(8, 1_MiB - 4_KiB);  // large pieces cost what they are
  spec_ = model_.in_memory();
  const std::uint64_t limit = smallest_budget_of(spec_) * 6;
  open(limit, Pressure::kAdaptive);
  std::vector<void*> held;
  while (void* const data = alloc(1_MiB)) {
    held.push_back(data);
    EXPECT_LE(budget_->used_bytes(), limit);
    EXPECT_LE(on_device(), limit);
    pass();
    ASSERT_LT(held.size(), 20U);
  }
  EXPECT_GE(held.size(), 2U);
  EXPECT_GT(engine_->statistics().gave_way, 1U);
  EXPECT_LE(budget_->peak_bytes(), limit);
  for (void* const data : held) free(data);
  pass();
}

TEST_F(CeilingTest, WhatCannotFitIsRefusedWithTheNumbersAndLaterOnesFit) {
  const std::uint64_t limit = smallest_ + 3 * kGroupBytes;
  open(limit, Pressure::kAdaptive);
  EXPECT_EQ(alloc(1_MiB), nullptr);
  EXPECT_EQ(alloc(2_MiB), nullptr);
  const auto refusal = ceiling_->take_refusal();
  ASSERT_TRUE(refusal);
  EXPECT_THAT(refusal->message, StartsWith("CUDA out of memory"));
  EXPECT_THAT(refusal->message, HasSubstr("1.00 MiB"));
  EXPECT_EQ(refusal->budget_bytes, limit);
  EXPECT_EQ(refusal->needed_bytes, budget_->used_bytes() + 1_MiB);
  EXPECT_FALSE(ceiling_->take_refusal());
  EXPECT_EQ(ceiling_->statistics().refusals, 2U);
  void* const data = alloc(kGroupBytes);
  EXPECT_NE(data, nullptr);
  pass();
  free(data);
}

/// What gives way is what a pass uses last: where the device computes for about as long as the link
/// is busy, its end would wait for loads that no resident hides.
TEST_F(CeilingTest, WhatGaveWayIsSpreadOverThePassesOfADeviceThatComputes) {
  take_llama_like();
  link_bytes_per_second_ = 2e6;
  open(everything_of(spec_) * 6 / 10, Pressure::kAdaptive);
  std::vector<void*> held;
  while (engine_->statistics().gave_way < 4) {
    held.push_back(alloc(10'000));
    ASSERT_NE(held.back(), nullptr);
  }
  const int given_way = longest_run_of_streamed();
  timed_pass(5);
  engine_->exchange_residents(0);
  EXPECT_EQ(longest_run_of_streamed(), given_way) << "the link is all";
  for (int attempt = 0; attempt < 5; ++attempt) {  // a machine may be late
    timed_pass(0.85);
    engine_->exchange_residents(0);
    if (longest_run_of_streamed() < given_way / 2) break;
  }
  EXPECT_LT(longest_run_of_streamed(), given_way / 2);
  pass();
  EXPECT_LE(budget_->peak_bytes(), budget_->limit_bytes());
  for (void* const data : held) free(data);
}

/// As where another process took the memory for a moment: what has no place then is away, and is
/// brought back as what gave way.
TEST_F(CeilingTest, PlacesThatTheDeviceRefusedAreFoundLater) {
  take_llama_like();
  open(everything_of(spec_) * 6 / 10, Pressure::kAdaptive);
  const std::uint64_t arena = engine_->plan().arena_bytes;
  const auto take_another_arena = [&] {
    for (std::uint64_t wanted = 100'000; engine_->plan().arena_bytes == arena; wanted += 100'000) {
      ASSERT_TRUE(engine_->make_room(wanted));
    }
  };
  std::vector<std::string> warnings;
  set_log_sink([&](LogLevel, std::string_view text) { warnings.emplace_back(text); });
  std::size_t lacked = 0;
  for (int refused = 1; refused <= 3; ++refused) {  // an arena, or residents
    take_another_arena();
    fake_.fail("cuMemAlloc_v2", refused, CudaResult::kOutOfMemory);
    static_cast<void>(engine_->take_back(0));
    if (engine_->lacks_places()) ++lacked;
    for (int forward = 0; forward < 20; ++forward) static_cast<void>(ceiling_->forward_ended());
    EXPECT_FALSE(engine_->lacks_places()) << refused;
    pass();
  }
  set_log_sink({});
  EXPECT_GT(lacked, 0U);
  EXPECT_EQ(warnings.size(), lacked);
  EXPECT_THAT(warnings, Each(HasSubstr("had no memory for some weights")));
  EXPECT_LE(budget_->peak_bytes(), budget_->limit_bytes());
}

/// It gets one in the arena once others have made room there.
TEST_F(CeilingTest, AResidentThatFoundNoPlaceIsRightWhereItIsLater) {
  open(everything_of(spec_), Pressure::kAdaptive);
  ASSERT_GT(engine_->give_way(1), 0U);
  set_total(on_device());
  EXPECT_THROW(engine_->set_budget(everything_of(spec_) + 1), BudgetError);
  EXPECT_EQ(budget_->limit_bytes(), everything_of(spec_));
  EXPECT_GT(engine_->give_way(1_MiB), 0U);
  int used = 0;
  for (std::size_t use = 0; use < 3 * model_.group_count(); ++use) {
    const auto group = static_cast<GroupId>(use % model_.group_count());
    if (!engine_->acquire(group, *stream_)) continue;
    Bytes bytes(model_.size_bytes(group));
    stream_->copy_to_host(bytes.data(), engine_->places(group)[0].data, bytes.size());
    stream_->synchronize();
    EXPECT_EQ(bytes, *model_.bytes(group)) << "group " << group;
    engine_->release(group, *stream_);
    ++used;
  }
  EXPECT_GT(used, 0);
}

TEST_F(CeilingTest, StrictRefusesAtOnce) {
  open(smallest_ + 4 * kGroupBytes, Pressure::kStrict);
  const std::uint64_t held = engine_->statistics().held_bytes;
  EXPECT_EQ(alloc(budget_->free_bytes() + 1), nullptr);
  EXPECT_TRUE(ceiling_->take_refusal());
  EXPECT_EQ(engine_->statistics().held_bytes, held);
  EXPECT_EQ(engine_->statistics().gave_way, 0U);
}

TEST_F(CeilingTest, LenientPassesTheBudgetWhileTheDeviceHasMemory) {
  open(smallest_ + 5 * kGroupBytes, Pressure::kLenient);
  void* const data = alloc(1_MiB);
  ASSERT_NE(data, nullptr);
  EXPECT_EQ(ceiling_->statistics().beyond_bytes, 1_MiB);
  const std::uint64_t residents = engine_->plan().resident_bytes;
  EXPECT_GT(residents, 0U);
  EXPECT_EQ(engine_->statistics().given_way_bytes, residents) << "residents go first";
  EXPECT_GT(budget_->used_bytes(), budget_->limit_bytes());
  pass();
  EXPECT_EQ(alloc(2_GiB), nullptr);
  EXPECT_TRUE(ceiling_->take_refusal());
  free(data);
  EXPECT_LE(budget_->used_bytes(), budget_->limit_bytes());
}

TEST_F(CeilingTest, WhatTheDeviceRefusesIsNotCountedAsBeyondTheBudget) {
  open(smallest_ + 5 * kGroupBytes, Pressure::kLenient);
  void* const data = alloc(1_MiB);
  ASSERT_NE(data, nullptr);
  fake_.fail("cuMemAlloc_v2", 1, CudaResult::kOutOfMemory);
  EXPECT_EQ(alloc(1_MiB), nullptr);
  EXPECT_EQ(ceiling_->statistics().beyond_bytes, 1_MiB);
  EXPECT_EQ(ceiling_->statistics().torch_bytes, 1_MiB);
  free(data);
  EXPECT_EQ(ceiling_->statistics().torch_bytes, 0U);
}

/// Another process took memory that the budget counts on.
TEST_F(CeilingTest, ADeviceWithLessThanTheBudgetTakesItFromResidents) {
  open(everything_of(spec_) + 20'000, Pressure::kAdaptive);
  set_total(on_device() + 1000);
  void* const data = alloc(10'000);
  ASSERT_NE(data, nullptr);
  EXPECT_GT(engine_->statistics().gave_way, 0U);
  pass();
  int given = 0;
  do {
    set_total(on_device() + 100);
    void* const more = alloc(4000);
    if (more == nullptr) break;
    free(more);
  } while (++given < 20);
  EXPECT_LT(given, 8);
  const auto refusal = ceiling_->take_refusal();
  ASSERT_TRUE(refusal);
  EXPECT_THAT(refusal->message, StartsWith("CUDA out of memory"));
  EXPECT_THAT(refusal->message, HasSubstr("are free"));
  free(data);
  pass();
}

TEST_F(CeilingTest, MemoryOutlivesTheEngine) {
  open(everything_of(spec_) + 20'000, Pressure::kAdaptive);
  void* const data = alloc(5000);
  ASSERT_NE(data, nullptr);
  std::memset(data, 7, 5000);
  const std::shared_ptr<Ceiling> ceiling = ceiling_;
  leave();
  EXPECT_EQ(ceiling->allocate(130'000), nullptr) << "nothing makes room";
  EXPECT_EQ(static_cast<char*>(data)[4999], 7);
  EXPECT_EQ(budget_->used_bytes(), 5000U);
  free(data);
  EXPECT_EQ(budget_->used_bytes(), 0U);
  EXPECT_EQ(alloc(100), nullptr) << "nobody is entered";
}

TEST_F(CeilingTest, TheInnermostModelOfAThreadIsAsked) {
  open(everything_of(spec_) + 40'000, Pressure::kAdaptive);
  const auto inner_budget = Budget::create(everything_of(spec_) + 40'000);
  Engine inner(*device_, inner_budget, spec_, EngineOptions{});
  const auto inside = std::make_shared<Ceiling>(device_, inner_budget, inner,
                                                Ceiling::Options{Pressure::kStrict, kIndex});
  inside->enter();
  void* const ours = alloc(5000);
  EXPECT_EQ(inside->statistics().torch_bytes, 5000U);
  inside->leave();
  void* const outer = alloc(6000);
  EXPECT_EQ(ceiling_->statistics().torch_bytes, 6000U);
  EXPECT_EQ(ts_torch_alloc(100, kIndex + 1, nullptr), nullptr) << "another device";
  free(ours);
  free(outer);
  inside->detach();
}

/// With a torch whose pools take every thread's requests, a thread of its own is charged too.
TEST_F(CeilingTest, AThreadThatEnteredNoneIsChargedToTheLastEntered) {
  open(everything_of(spec_) + 40'000, Pressure::kAdaptive);
  void* data = nullptr;
  std::jthread([&] { data = alloc(5000); }).join();
  EXPECT_NE(data, nullptr);
  EXPECT_EQ(ceiling_->statistics().torch_bytes, 5000U);
  std::jthread([&] { free(data); }).join();
  EXPECT_EQ(ceiling_->statistics().torch_bytes, 0U);
}

TEST_F(CeilingTest, AnAbandonedForwardIsLeftFromAnotherThread) {
  open(everything_of(spec_) + 40'000, Pressure::kAdaptive);
  std::jthread([&] { ceiling_->leave(); }).join();
  ceiling_->leave();
  EXPECT_EQ(alloc(100), nullptr);
}

/// As autograd's thread does, whose backward ended with an error that another thread is told of.
TEST_F(CeilingTest, AThreadIsUnderNoCeilingThatAnotherThreadLeft) {
  open(everything_of(spec_) + 40'000, Pressure::kAdaptive);
  const auto other_budget = Budget::create(everything_of(spec_) + 40'000);
  Engine other(*device_, other_budget, spec_, EngineOptions{});
  const auto later = std::make_shared<Ceiling>(device_, other_budget, other,
                                               Ceiling::Options{Pressure::kStrict, kIndex});
  std::jthread([&] { ceiling_->leave(); }).join();
  std::jthread([&] { later->enter(); }).join();
  void* const data = alloc(5000);
  EXPECT_EQ(ceiling_->statistics().torch_bytes, 0U);
  EXPECT_EQ(later->statistics().torch_bytes, 5000U);
  free(data);
  later->leave();
  later->detach();
}

/// As torch does where it splits no large block.
TEST_F(CeilingTest, ARefusalIsNoneWhereTorchGivesBackWhatItHasFreeAndAsksAgain) {
  open(everything_of(spec_) + 40'000, Pressure::kStrict);
  void* data = alloc(30'000);
  ASSERT_NE(data, nullptr);
  EXPECT_EQ(alloc(35'000), nullptr);
  EXPECT_EQ(alloc(35'000), nullptr) << "nothing was given back";
  EXPECT_EQ(ceiling_->statistics().refusals, 2U);
  ASSERT_TRUE(ceiling_->take_refusal());
  EXPECT_EQ(alloc(36'000), nullptr);
  free(data);
  data = alloc(36'000);
  ASSERT_NE(data, nullptr);
  EXPECT_EQ(ceiling_->statistics().refusals, 2U);
  EXPECT_FALSE(ceiling_->take_refusal());
  EXPECT_EQ(alloc(37'000), nullptr);
  free(data);
  data = alloc(10'000);  // another request
  EXPECT_EQ(ceiling_->statistics().refusals, 3U);
  EXPECT_TRUE(ceiling_->take_refusal());
  free(data);
}

TEST_F(CeilingTest, ResidentsComeBackWhenThePressureIsOver) {
  open(smallest_ + 4 * kGroupBytes, Pressure::kAdaptive);
  void* const data = alloc(budget_->free_bytes() + 2 * kGroupBytes);
  ASSERT_NE(data, nullptr);
  EXPECT_FALSE(ceiling_->forward_ended());
  int forwards = 1;
  while (!ceiling_->forward_ended()) {
    pass();
    ASSERT_LT(++forwards, 100);
  }
  const std::uint64_t away = engine_->statistics().given_way_bytes;
  EXPECT_GE(away, 2 * kGroupBytes);
  free(data);  // as torch does when it is asked to
  pass();
  EXPECT_FALSE(ceiling_->forward_ended());
  EXPECT_LT(engine_->statistics().given_way_bytes, away);
  pass();
  EXPECT_LE(budget_->peak_bytes(), budget_->limit_bytes());
}

/// What comes back leaves so much of a budget of 64 groups, of which a plan spares four for torch.
struct Spared {
  std::uint64_t torch_groups;
  bool is_refused;
  std::uint64_t left_groups;
};

class CeilingSparedTest : public CeilingTest, public ::testing::WithParamInterface<Spared> {};

/// A plan spares bytes for torch before it is known what it needs: these are of them.
TEST_P(CeilingSparedTest, WhatTorchHoldsIsOfThat) {
  model_ = equal_model(100, 6000);
  spec_ = model_.in_memory();
  reserved_share_ = 0.25;
  open(64 * kGroupBytes, Pressure::kAdaptive);
  ASSERT_EQ(spared_bytes(64 * kGroupBytes), 4 * kGroupBytes);
  void* const data =
      GetParam().torch_groups == 0 ? nullptr : alloc(GetParam().torch_groups * kGroupBytes);
  if (GetParam().is_refused) {
    EXPECT_EQ(alloc(64 * kGroupBytes), nullptr);
  }
  const std::uint64_t free_bytes = budget_->free_bytes();
  for (int forward = 0; budget_->free_bytes() >= free_bytes; ++forward) {
    ASSERT_LT(forward, 100);
    pass();
    static_cast<void>(ceiling_->forward_ended());
  }
  EXPECT_EQ(budget_->free_bytes() / kGroupBytes, GetParam().left_groups);
  if (data != nullptr) free(data);
}

INSTANTIATE_TEST_SUITE_P(Torch, CeilingSparedTest,
                         ::testing::Values(Spared{0, false, 4}, Spared{1, false, 3},
                                           Spared{2, false, 2}, Spared{8, false, 2},
                                           Spared{2, true, 4}));

}  // namespace
}  // namespace tensorstream

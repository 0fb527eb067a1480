// What a model that trains asks of its ceiling: orders that are no plain cycle, and what torch
// gives back amidst a step.
#include <gtest/gtest.h>

#include <cstdint>

#include "base/units.h"
#include "engine/ceiling_fixture.h"

namespace tensorstream {
namespace {

/// Torch gives back in a forward what it needs again in the next one.
TEST_F(CeilingTest, ResidentsAreNotGivenWhatTorchNeededForAWhile) {
  open(smallest_ + 5 * kGroupBytes, Pressure::kAdaptive);
  const std::uint64_t free_bytes = budget_->free_bytes();
  std::uint64_t gave_way = 0;
  for (int forward = 0; forward < 30; ++forward) {
    void* const data = alloc(free_bytes + 3 * kGroupBytes);
    ASSERT_NE(data, nullptr);
    pass();
    free(data);
    void* const kept = alloc(free_bytes / 2);
    free(kept);
    static_cast<void>(ceiling_->forward_ended());
    if (forward == 0) gave_way = engine_->statistics().gave_way;
  }
  EXPECT_GT(gave_way, 0U);
  EXPECT_EQ(engine_->statistics().gave_way, gave_way) << "they came back, and had to go again";
}

/// Torch gives back no large block where it asks for a segment of small ones.
TEST_F(CeilingTest, RoomIsLeftForSmallSegments) {
  const std::uint64_t limit = everything_of(spec_) + 160_MiB;
  open(limit, Pressure::kAdaptive);
  ceiling_->keep_for_small_segments();
  const std::uint64_t most_of_it = budget_->free_bytes();
  void* data = alloc(most_of_it);
  ASSERT_NE(data, nullptr) << "there is nothing that torch could give back";
  free(data);
  data = alloc(90_MiB);
  const std::uint64_t all = budget_->free_bytes();
  EXPECT_EQ(alloc(all), nullptr);
  free(data);
  void* const again = alloc(all);
  ASSERT_NE(again, nullptr) << "after what torch had free";
  EXPECT_FALSE(ceiling_->take_refusal());
  free(again);
  data = alloc(90_MiB);
  EXPECT_EQ(alloc(budget_->free_bytes()), nullptr);
  const auto refusal = ceiling_->take_refusal();
  ASSERT_TRUE(refusal);
  EXPECT_GT(refusal->needed_bytes, limit);
  free(data);
  void* const most = alloc(budget_->free_bytes() - limit / 64);
  ASSERT_NE(most, nullptr);
  void* const small = alloc(2_MiB);
  EXPECT_NE(small, nullptr);
  free(small);
  free(most);
}

TEST_F(CeilingTest, GroupsAreArrangedForAnOrderThatWasLearnt) {
  take_llama_like();
  open(400_KiB, Pressure::kAdaptive);
  const std::uint64_t moves = engine_->place_moves();
  EXPECT_FALSE(ceiling_->forward_ended());
  EXPECT_EQ(engine_->place_moves(), moves) << "nothing was learnt";
  for (int step = 0; step < 3; ++step) {  // what follows backward shows in the second
    for (const GroupId group : llama_like_step()) use(group);
    EXPECT_FALSE(ceiling_->forward_ended());
  }
  EXPECT_GT(engine_->place_moves(), moves);
  for (const GroupId group : llama_like_step()) use(group);
}

TEST_F(CeilingTest, PlansForTrainingTakeNoMoreThanThePlanBefore) {
  take_llama_like();
  reserved_share_ = 0.125;
  open(900_KiB, Pressure::kAdaptive);
  const Plan before = engine_->plan();
  EXPECT_LE(before.budget_bytes, 900_KiB / 8 * 7);
  for (int step = 0; step < 6; ++step) {
    for (const GroupId group : llama_like_step()) use(group);
    EXPECT_FALSE(ceiling_->forward_ended());
    EXPECT_LE(engine_->statistics().held_bytes, before.budget_bytes) << "what torch may have";
  }
  EXPECT_GT(engine_->plan().arena_bytes, before.arena_bytes);
}

TEST_F(CeilingTest, PlansForTrainingGoWithIt) {
  take_llama_like();
  open(900_KiB, Pressure::kAdaptive);
  const Plan before = engine_->plan();
  for (int step = 0; step < 6; ++step) {
    for (const GroupId group : llama_like_step()) use(group);
    EXPECT_FALSE(ceiling_->forward_ended());
  }
  EXPECT_GT(engine_->plan().streamed_bytes, before.streamed_bytes) << "an arena for a block";
  for (int forward = 0; forward < 24; ++forward) {
    pass();
    EXPECT_FALSE(ceiling_->forward_ended());
  }
  EXPECT_EQ(engine_->plan().streamed_bytes, before.streamed_bytes);
}

TEST_F(CeilingTest, PlansForTrainingLeaveWhatTorchNeedsForAWhile) {
  take_llama_like();
  reserved_share_ = 0.125;
  for (const std::uint64_t limit : {440_KiB, 520_KiB, 640_KiB, 900_KiB, 1100_KiB, 1300_KiB}) {
    SCOPED_TRACE(limit);
    open(limit, Pressure::kAdaptive);
    const std::uint64_t needed = budget_->free_bytes();
    for (int step = 0; step < 6; ++step) {
      train(needed);
      EXPECT_EQ(ceiling_->statistics().refusals, 0U);
      EXPECT_EQ(engine_->statistics().gave_way, 0U);
    }
    leave();
  }
}

/// Nothing is taken away that could not be given back.
TEST_F(CeilingTest, TorchBeyondTheBudgetLeavesGroupsTheirPlaces) {
  take_llama_like();
  for (const std::uint64_t limit : {500_KiB, 1300_KiB}) {
    SCOPED_TRACE(limit);
    open(limit, Pressure::kLenient);
    void* const data = alloc(limit + 200_KiB);
    ASSERT_NE(data, nullptr);
    for (int step = 0; step < 4; ++step) train(0);
    free(data);
    for (int step = 0; step < 4; ++step) train(0);
    leave();
  }
}

/// Those that a plan for training has fewer of are not away.
TEST_F(CeilingTest, ResidentsComeBackToTraining) {
  take_llama_like();
  for (const std::uint64_t taken_bytes : {0_KiB, 100_KiB, 200_KiB}) {
    SCOPED_TRACE(taken_bytes);
    leave();
    open(900_KiB, Pressure::kAdaptive);
    void* const data = taken_bytes == 0 ? nullptr : alloc(budget_->free_bytes() + taken_bytes);
    for (int step = 0; step < 4; ++step) train(0);
    const std::uint64_t held = engine_->statistics().held_bytes;
    if (data != nullptr) free(data);
    for (int step = 0; step < 24; ++step) train(0);
    EXPECT_EQ(engine_->statistics().given_way_bytes, 0U);
    if (taken_bytes == 0) continue;
    EXPECT_GE(engine_->statistics().held_bytes, held + taken_bytes / 2);
  }
}

TEST_F(CeilingTest, ARefusedRequestIsMadeRoomForWhateverTheOrder) {
  take_llama_like();
  open(900_KiB, Pressure::kAdaptive);
  int refused = 0;
  for (int step = 0; step < 8; ++step) {
    for (const GroupId group : llama_like_step()) use(group);
    void* const data = alloc(630_KiB);
    if (data == nullptr) ++refused;
    if (data != nullptr) free(data);
    static_cast<void>(ceiling_->take_refusal());
    static_cast<void>(ceiling_->forward_ended());
  }
  EXPECT_LE(refused, 1);
}

/// The backward of another thread reads a weight as a forward ends.
TEST_F(CeilingTest, RoomIsMadeOnceNothingIsLeased) {
  take_llama_like();
  open(900_KiB, Pressure::kAdaptive);
  for (const GroupId group : llama_like_step()) use(group);
  EXPECT_EQ(alloc(630_KiB), nullptr);
  static_cast<void>(ceiling_->take_refusal());
  ASSERT_TRUE(engine_->acquire(0, *stream_));
  EXPECT_NO_THROW(static_cast<void>(ceiling_->forward_ended()));
  EXPECT_EQ(engine_->counters().made_room_bytes, 0U);
  engine_->release(0, *stream_);
  for (const GroupId group : llama_like_step()) use(group);
  static_cast<void>(ceiling_->forward_ended());
  EXPECT_GT(engine_->counters().made_room_bytes, 0U);
  void* const data = alloc(630_KiB);
  EXPECT_NE(data, nullptr);
  free(data);
}

TEST_F(CeilingTest, ResidentsComeBackOnceNothingIsLeased) {
  take_llama_like();
  open(900_KiB, Pressure::kAdaptive);
  for (const GroupId group : llama_like_step()) use(group);
  EXPECT_EQ(alloc(630_KiB), nullptr);
  static_cast<void>(ceiling_->take_refusal());
  static_cast<void>(ceiling_->forward_ended());
  ASSERT_GT(engine_->counters().made_room_bytes, 0U);
  for (int forward = 0; forward < 12; ++forward) {
    pass();
    ASSERT_TRUE(engine_->acquire(0, *stream_));
    EXPECT_NO_THROW(static_cast<void>(ceiling_->forward_ended()));
    engine_->release(0, *stream_);
  }
  EXPECT_GT(engine_->counters().made_room_bytes, 0U);
  for (int forward = 0; engine_->counters().made_room_bytes != 0; ++forward) {
    ASSERT_LT(forward, 40);
    pass();
    static_cast<void>(ceiling_->forward_ended());
  }
}

}  // namespace
}  // namespace tensorstream

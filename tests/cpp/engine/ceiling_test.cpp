// What torch's allocator asks for, by the fake driver: charged, made room for, refused, given back.
#include "engine/ceiling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "device/cuda_device.h"
#include "engine/open_engine.h"
#include "engine/test_model.h"
#include "fake_cuda/fake_cuda.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr std::uint64_t kGroupBytes = 8192;  // what a group of 6000 bytes takes
constexpr int kIndex = 0;

class CeilingTest : public ::testing::Test {
 protected:
  CeilingTest() { fake_.reset(); }
  ~CeilingTest() override {
    leave();
    device_.reset();
    EXPECT_EQ(fake_.get("leaked"), 0);
    EXPECT_EQ(fake_.held(), 0);
  }

  /// An engine whose weights are at home and all loaded once, under `limit_bytes`.
  void open(std::uint64_t limit_bytes, Pressure pressure) {
    if (device_ == nullptr) {
      device_ = create_cuda_device(
          {.checking = Checking::kOn, .longest_delay_us = 20, .driver_library = FakeCuda::path()});
    }
    EngineOptions options;
    options.piece_bytes = 4096;
    options.rates.link_bytes_per_second = link_bytes_per_second_;
    options.reserved_share = reserved_share_;
    options.residents =
        pressure == Pressure::kStrict ? ResidentUse::kSettled : ResidentUse::kLeased;
    budget_ = Budget::create(limit_bytes);
    engine_ = std::make_unique<Engine>(*device_, budget_, spec_, options);
    for (GroupId group = 0; group < model_.group_count(); ++group) engine_->bring_home(group);
    stream_ = device_->create_stream();
    pass();
    stream_->synchronize();
    // What is still loaded ahead does not give way: until the last load is counted.
    ASSERT_TRUE(stays_false([loads = engine_->statistics().loads, this] {
      return engine_->statistics().loads < loads;
    }));
    ceiling_ =
        std::make_shared<Ceiling>(device_, budget_, *engine_, Ceiling::Options{pressure, kIndex});
    ceiling_->enter();
  }

  /// Of the shape of Llama, beside a link that is as much slower: leases would take longer than
  /// loads.
  void take_llama_like() {
    model_ = llama_like_model();
    spec_ = model_.in_memory();
    link_bytes_per_second_ = 54e6;
  }

  /// As the model is used: its bytes are read back and are right.
  void pass() {
    for (GroupId group = 0; group < model_.group_count(); ++group) use(group);
  }
  void use(GroupId group) {
    ASSERT_TRUE(engine_->acquire(group, *stream_)) << "group " << group;
    Bytes bytes(model_.size_bytes(group));
    stream_->copy_to_host(bytes.data(), engine_->places(group)[0].data, bytes.size());
    stream_->synchronize();
    EXPECT_EQ(bytes, *model_.bytes(group)) << "group " << group;
    engine_->release(group, *stream_);
  }

  /// A step of training in which torch takes so much for a while.
  void train(std::uint64_t taken_bytes) {
    for (const GroupId group : llama_like_step()) use(group);
    void* const data = taken_bytes == 0 ? nullptr : alloc(taken_bytes);
    if (data != nullptr) free(data);
    static_cast<void>(ceiling_->forward_ended());
  }

  void leave() {
    if (ceiling_) ceiling_->leave();
    if (ceiling_) ceiling_->detach();
    ceiling_.reset();
    stream_.reset();
    engine_.reset();
  }

  /// By the driver's count.
  std::uint64_t on_device() const { return total_bytes_ - device_->free_bytes(); }
  void set_total(std::uint64_t bytes) {
    total_bytes_ = bytes;
    fake_.set("total_bytes", static_cast<long long>(bytes));
  }
  static void* alloc(std::uint64_t size_bytes) {
    return ts_torch_alloc(static_cast<std::int64_t>(size_bytes), kIndex, nullptr);
  }
  static void free(void* data) { ts_torch_free(data, 0, kIndex, nullptr); }

  const FakeCuda fake_;
  std::uint64_t total_bytes_ = 1_GiB;
  double link_bytes_per_second_ = 5e9;
  double reserved_share_ = 0;
  TestModel model_ = equal_model(8, 6000);
  ModelSpec spec_ = model_.in_memory();
  std::uint64_t smallest_ = smallest_budget_of(spec_);
  std::shared_ptr<Device> device_;
  std::shared_ptr<Budget> budget_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Stream> stream_;
  std::shared_ptr<Ceiling> ceiling_;
};

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

/// It gets one in the arena once others have made room there.
TEST_F(CeilingTest, AResidentThatFoundNoPlaceIsRightWhereItIsLater) {
  open(smallest_ + 2 * kGroupBytes, Pressure::kAdaptive);
  fake_.fail("cuMemAlloc_v2", 3, CudaResult::kOutOfMemory);
  EXPECT_THROW(engine_->set_budget(everything_of(spec_)), BudgetError);
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

TEST_F(CeilingTest, ResidentsComeBackToTraining) {
  take_llama_like();
  open(1300_KiB, Pressure::kAdaptive);
  for (int step = 0; step < 12; ++step) train(0);
  void* const data = alloc(budget_->free_bytes() + 200_KiB);
  ASSERT_NE(data, nullptr);
  for (int step = 0; step < 4; ++step) train(0);
  const std::uint64_t held = engine_->statistics().held_bytes;
  free(data);
  for (int step = 0; step < 40; ++step) train(0);
  EXPECT_GT(engine_->statistics().held_bytes, held + 100_KiB);
  EXPECT_EQ(engine_->statistics().given_way_bytes, 0U);
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

}  // namespace
}  // namespace tensorstream

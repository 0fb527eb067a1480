// Leases: who has a place, when it may be touched, and what giving it back means.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <memory>

#include "engine/open_engine.h"
#include "engine/test_model.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

void touch(const std::byte* data) {
  static_cast<void>(*static_cast<const volatile std::byte*>(data));
}

/// Four groups that share one place, used by the calling thread.
class EngineLeaseDeathTest : public ::testing::Test {
 protected:
  EngineLeaseDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }

  const std::byte* data(GroupId group) const { return engine_->places(group).at(0).data; }

  const TestModel model_ = equal_model(4, 5000);
  const std::unique_ptr<Device> device_ = checking_device();
  Stream& caller_ = device_->caller_stream();
  const std::unique_ptr<Engine> engine_ =
      open_engine(*device_, model_.in_memory(), smallest_budget_of(model_.in_memory()),
                  with_prefetch(Prefetch::kNone));
  Computation computation_{*engine_, model_};
};
using EngineLease = EngineLeaseDeathTest;

TEST_F(EngineLeaseDeathTest, APlaceCannotBeTouchedBeforeALease) {
  EXPECT_DEATH(touch(data(0)), "");
}

TEST_F(EngineLeaseDeathTest, APlaceCannotBeTouchedAfterItsRelease) {
  ASSERT_TRUE(engine_->acquire(0, caller_));
  touch(data(0));
  engine_->release(0, caller_);
  EXPECT_DEATH(touch(data(0)), "");
}

TEST_F(EngineLeaseDeathTest, APlaceCannotBeTouchedAfterAllAreReleased) {
  ASSERT_TRUE(engine_->acquire(0, caller_));
  ASSERT_TRUE(engine_->acquire(0, caller_));
  engine_->release_all(caller_);
  EXPECT_DEATH(touch(data(0)), "");
}

TEST_F(EngineLeaseDeathTest, TheLastOfNestedLeasesClosesThePlace) {
  ASSERT_TRUE(engine_->acquire(0, caller_));
  ASSERT_TRUE(engine_->acquire(0, caller_));
  engine_->release(0, caller_);
  computation_.compute(0, caller_);
  EXPECT_EQ(computation_.right(), 1U);
  engine_->release(0, caller_);
  EXPECT_DEATH(touch(data(0)), "");
}

TEST_F(EngineLease, WhatIsWrittenToAPlaceIsGoneAtTheNextLoad) {
  ASSERT_TRUE(engine_->acquire(0, caller_));
  engine_->places(0).at(0).data[17] ^= std::byte{1};
  engine_->release(0, caller_);
  ASSERT_TRUE(computation_.use(1, caller_));
  ASSERT_TRUE(computation_.use(0, caller_));
  EXPECT_EQ(computation_.right(), 2U);
}

TEST_F(EngineLease, AGroupHasNoPlaceWhileAnotherLeaseHoldsIt) {
  ASSERT_TRUE(engine_->acquire(0, caller_));
  EXPECT_FALSE(engine_->acquire(1, caller_));
  EXPECT_FALSE(engine_->acquire(3, caller_));
  computation_.compute(0, caller_);
  EXPECT_EQ(computation_.right(), 1U);
  EXPECT_THROW(engine_->release(1, caller_), LeaseError);
  engine_->release(0, caller_);
  EXPECT_TRUE(computation_.use(1, caller_));
  EXPECT_EQ(computation_.right(), 2U);
}

TEST_F(EngineLease, ReleasingWithoutALeaseIsAnError) {
  EXPECT_THROW(engine_->release(0, caller_), LeaseError);
  ASSERT_TRUE(engine_->acquire(0, caller_));
  engine_->release(0, caller_);
  try {
    engine_->release(0, caller_);
    FAIL() << "no error";
  } catch (const LeaseError& error) {
    EXPECT_THAT(error.what(), HasSubstr("'0'"));
  }
  EXPECT_TRUE(computation_.use(0, caller_));
  EXPECT_TRUE(computation_.use(1, caller_));
  EXPECT_EQ(computation_.right(), 2U);
}

TEST_F(EngineLease, ReleasingAllGivesEveryLeaseBack) {
  engine_->release_all(caller_);
  ASSERT_TRUE(engine_->acquire(0, caller_));
  ASSERT_TRUE(engine_->acquire(0, caller_));
  engine_->release_all(caller_);
  EXPECT_THROW(engine_->release(0, caller_), LeaseError);
  for (int pass = 0; pass < 2; ++pass) computation_.pass(caller_);
  EXPECT_EQ(computation_.right(), 8U);
}

TEST_F(EngineLease, ReleasingAllForgetsTheOrderOfTheForward) {
  ASSERT_TRUE(computation_.use(0, caller_));
  ASSERT_TRUE(computation_.use(1, caller_));
  ASSERT_TRUE(engine_->acquire(2, caller_));
  engine_->release_all(caller_);
  computation_.pass(caller_);
  EXPECT_EQ(engine_->statistics().surprises, 0U);
}

/// A stream that another device made knows nothing of the places.
TEST_F(EngineLease, AnAcquireThatFailsOnItsStreamKeepsNoLease) {
  const auto other = checking_device();
  EXPECT_THROW(static_cast<void>(engine_->acquire(0, other->caller_stream())), LeaseError);
  EXPECT_THROW(engine_->release(0, caller_), LeaseError);
  EXPECT_TRUE(computation_.use(1, caller_));
  EXPECT_TRUE(computation_.use(0, caller_));
  EXPECT_EQ(computation_.right(), 2U);
}

/// Groups of every placement: a required one, a table read by rows, and streamed ones.
class EnginePlacements : public ::testing::TestWithParam<On> {
 protected:
  EnginePlacements() {
    resident_ = model_.add_group({3000, 100}, Residency::kRequired);
    table_ = model_.add_group({6400}, Residency::kByRows);
    for (int i = 0; i < 5; ++i) model_.add_group({700, 4096});
    const ModelSpec spec = model_.in_memory();
    engine_ = open_engine(*device_, spec, budgets_of(spec, 6)[1]);
  }

  TestModel model_;
  GroupId resident_ = 0;
  GroupId table_ = 0;
  const std::unique_ptr<Device> device_ = checking_device();
  const ComputeStream compute_stream_{*device_, GetParam()};
  Stream& stream_ = compute_stream_.get();
  std::unique_ptr<Engine> engine_;
};

TEST_P(EnginePlacements, AResidentGroupIsAlwaysThere) {
  Computation computation(*engine_, model_);
  ASSERT_EQ(engine_->plan().groups[resident_].placement, Placement::kResident);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(engine_->acquire(resident_, stream_));
  computation.compute(resident_, stream_);
  for (int i = 0; i < 3; ++i) engine_->release(resident_, stream_);
  stream_.synchronize();
  EXPECT_EQ(computation.right(), 2U);
  EXPECT_EQ(engine_->statistics().hits, 3U);
}

TEST_P(EnginePlacements, AResidentGroupIsReleasedAsOftenAsItWasAcquired) {
  EXPECT_THROW(engine_->release(resident_, stream_), LeaseError);
  ASSERT_TRUE(engine_->acquire(resident_, stream_));
  engine_->release(resident_, stream_);
  EXPECT_THROW(engine_->release(resident_, stream_), LeaseError);
  ASSERT_TRUE(engine_->acquire(resident_, stream_));
  engine_->release_all(stream_);
  EXPECT_THROW(engine_->release(resident_, stream_), LeaseError);
}

TEST_P(EnginePlacements, AGroupOnDemandIsNeverLeased) {
  ASSERT_EQ(engine_->plan().groups[table_].placement, Placement::kOnDemand);
  EXPECT_FALSE(engine_->acquire(table_, stream_));
  EXPECT_THROW(engine_->release(table_, stream_), LeaseError);
  EXPECT_TRUE(engine_->places(table_).empty());
}

TEST_P(EnginePlacements, PlacesNeverMove) {
  std::vector<const std::byte*> first;
  for (int pass = 0; pass < 3; ++pass) {
    std::vector<const std::byte*> found;
    for (GroupId group = 0; group < model_.group_count(); ++group) {
      const bool leased = engine_->acquire(group, stream_);
      for (const TensorPlace& place : engine_->places(group)) found.push_back(place.data);
      if (leased) engine_->release(group, stream_);
    }
    if (pass == 0) first = found;
    EXPECT_EQ(found, first);
  }
  EXPECT_EQ(first.size(), model_.tensor_count() - 1);  // all but the table
}

TEST_P(EnginePlacements, PlacesInTheArenaAreAligned) {
  for (GroupId group = 0; group < model_.group_count(); ++group) {
    if (engine_->plan().groups[group].placement != Placement::kStreamed) continue;
    for (const TensorPlace& place : engine_->places(group)) {
      EXPECT_EQ(std::bit_cast<std::uintptr_t>(place.data) % kTensorAlignment, 0U);
      EXPECT_EQ(place.size_bytes, model_.bytes(place.tensor)->size());
    }
  }
}

TEST_P(EnginePlacements, LeasesOfSeveralGroupsAreHeldAtOnce) {
  const ModelSpec spec = model_.in_memory();
  const auto engine = open_engine(*device_, spec, budgets_of(spec, 6)[4]);
  Computation computation(*engine, model_);
  std::vector<GroupId> held;
  for (GroupId group = 2; group < model_.group_count(); ++group) {
    if (engine->acquire(group, stream_)) held.push_back(group);
  }
  ASSERT_GE(held.size(), 2U);
  for (int round = 0; round < 3; ++round) {
    for (const GroupId group : held) computation.compute(group, stream_);
  }
  for (const GroupId group : held) engine->release(group, stream_);
  stream_.synchronize();
  EXPECT_EQ(computation.right(), held.size() * 2 * 3);
  EXPECT_EQ(computation.wrong(), 0U);
}

INSTANTIATE_TEST_SUITE_P(Streams, EnginePlacements, ::testing::Values(On::kCaller, On::kQueue),
                         on_name);

}  // namespace
}  // namespace tensorstream

#include "scheduler/return_policy.h"

#include <gtest/gtest.h>

namespace tensorstream {
namespace {

using Step = ReturnPolicy::Step;

constexpr ReturnPolicy::Forward kPressed = {.pressed = true, .away = true};
constexpr ReturnPolicy::Forward kQuiet = {.pressed = false, .away = true};

/// Quiet forwards until one is followed by a step.
int forwards_until(ReturnPolicy& policy, Step step) {
  for (int count = 1; count < 10'000; ++count) {
    const Step next = policy.forward_ended(kQuiet);
    if (next == step) return count;
    EXPECT_EQ(next, Step::kNothing);
  }
  return -1;
}

TEST(ReturnPolicy, ResidentsThatAreThereNeedNothing) {
  ReturnPolicy policy;
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(policy.forward_ended({.pressed = false, .away = false}), Step::kNothing);
  }
}

TEST(ReturnPolicy, TheyComeBackAForwardAfterTorchGaveItsMemoryBack) {
  ReturnPolicy policy;
  EXPECT_EQ(policy.forward_ended(kPressed), Step::kNothing);
  EXPECT_EQ(forwards_until(policy, Step::kTrim), 8);
  EXPECT_EQ(policy.forward_ended(kQuiet), Step::kReturn);
}

/// What torch keeps then is what it uses.
TEST(ReturnPolicy, NothingIsGivenBackWhereThereWasNoPressure) {
  ReturnPolicy policy;
  EXPECT_EQ(forwards_until(policy, Step::kReturn), 9);
}

TEST(ReturnPolicy, WhereNothingReturnedTheNextTimeComesLater) {
  ReturnPolicy policy;
  policy.forward_ended(kPressed);
  for (const int waited : {8, 16, 32, 64}) {
    EXPECT_EQ(forwards_until(policy, Step::kTrim), waited);
    EXPECT_EQ(policy.forward_ended(kQuiet), Step::kReturn);
    policy.nothing_returned();
  }
}

TEST(ReturnPolicy, PressureBeginsTheWaitAnew) {
  ReturnPolicy policy;
  policy.forward_ended(kPressed);
  for (int i = 0; i < 50; ++i) {
    for (int quiet = 0; quiet < 7; ++quiet) {
      EXPECT_EQ(policy.forward_ended(kQuiet), Step::kNothing);
    }
    EXPECT_EQ(policy.forward_ended(kPressed), Step::kNothing);
  }
  EXPECT_EQ(forwards_until(policy, Step::kTrim), 8);
}

/// Long and short sequences in turn: the moves become rarer and rarer.
TEST(ReturnPolicy, ReturnsThatAreUndoneBecomeRare) {
  ReturnPolicy policy;
  int waited = 8;
  for (int round = 0; round < 12; ++round) {
    policy.forward_ended(kPressed);
    EXPECT_EQ(forwards_until(policy, Step::kTrim), waited);
    EXPECT_EQ(policy.forward_ended(kQuiet), Step::kReturn);
    waited = waited < 1024 ? 2 * waited : 1024;
  }
}

TEST(ReturnPolicy, AReturnThatLastsIsForgiven) {
  ReturnPolicy policy;
  for (int round = 0; round < 3; ++round) {
    policy.forward_ended(kPressed);
    forwards_until(policy, Step::kTrim);
    EXPECT_EQ(policy.forward_ended(kQuiet), Step::kReturn);
  }
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(policy.forward_ended({.pressed = false, .away = false}), Step::kNothing);
  }
  policy.forward_ended(kPressed);
  EXPECT_EQ(forwards_until(policy, Step::kTrim), 8);
}

/// What did not fit waits for its turn as the first did.
TEST(ReturnPolicy, WhoIsStillAwayIsTriedAgain) {
  ReturnPolicy policy;
  policy.forward_ended(kPressed);
  for (int round = 0; round < 5; ++round) {
    EXPECT_EQ(forwards_until(policy, Step::kTrim), 8);
    EXPECT_EQ(policy.forward_ended(kQuiet), Step::kReturn);
  }
}

/// Forwards until it is time, `pressed` again after each so many (0: never).
int forwards_until_exchange(ExchangePolicy& policy, int pressed_every) {
  for (int count = 1; count < 1000; ++count) {
    if (policy.forward_ended(pressed_every != 0 && count % pressed_every == 0)) return count;
  }
  return -1;
}

TEST(ExchangePolicy, OnceAfterPressureAndTwoQuietForwards) {
  ExchangePolicy policy;
  EXPECT_EQ(forwards_until_exchange(policy, 0), -1) << "nothing gave way";
  EXPECT_FALSE(policy.forward_ended(true));
  EXPECT_FALSE(policy.forward_ended(true));
  EXPECT_EQ(forwards_until_exchange(policy, 0), 2);
  EXPECT_EQ(forwards_until_exchange(policy, 0), -1);
}

TEST(ExchangePolicy, PressureAgainAndAgainWaitsUntilTheLastExchangeHasPaid) {
  ExchangePolicy policy;
  EXPECT_FALSE(policy.forward_ended(true));
  EXPECT_EQ(forwards_until_exchange(policy, 3), 2);
  for (int i = 0; i < 5; ++i) {
    EXPECT_GE(forwards_until_exchange(policy, 3), ExchangePolicy::kPassesToMakeUp);
  }
  ExchangePolicy other;
  EXPECT_FALSE(other.forward_ended(true));
  EXPECT_EQ(forwards_until_exchange(other, 1), -1) << "no forward is quiet";
}

}  // namespace
}  // namespace tensorstream

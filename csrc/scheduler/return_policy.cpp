#include "scheduler/return_policy.h"

#include <algorithm>

namespace tensorstream {

ReturnPolicy::Step ReturnPolicy::forward_ended(const Forward& forward) {
  if (forward.pressed) {
    if (returned_) wait_ = std::min(2 * wait_, kLongestWait);
    returned_ = false;
    pressed_ = true;
    quiet_ = 0;
    return Step::kNothing;
  }
  ++quiet_;
  if (returned_ && quiet_ > wait_) {  // it was right to come back
    wait_ = kFirstWait;
    returned_ = false;
  }
  if (!forward.away) return Step::kNothing;
  if (quiet_ == wait_) return pressed_ ? Step::kTrim : Step::kNothing;
  if (quiet_ <= wait_) return Step::kNothing;
  quiet_ = 0;
  returned_ = true;
  return Step::kReturn;
}

void ReturnPolicy::nothing_returned() {
  wait_ = std::min(2 * wait_, kLongestWait);
  returned_ = false;
  pressed_ = true;  // torch may keep what they need
}

bool ExchangePolicy::forward_ended(bool pressed) {
  since_ = std::min(since_ + 1, kPassesToMakeUp);
  quiet_ = pressed ? 0 : std::min(quiet_ + 1, kQuietForwards);
  pending_ = pending_ || pressed;
  if (!pending_ || quiet_ < kQuietForwards || since_ < kPassesToMakeUp) return false;
  pending_ = false;
  since_ = 0;
  return true;
}

}  // namespace tensorstream

#include "scheduler/return_policy.h"

#include <algorithm>

namespace tensorstream {

ReturnPolicy::Step ReturnPolicy::forward_ended(const Forward& forward) {
  if (forward.pressed) {
    if (returned_) wait_ = std::min(2 * wait_, kLongestWait);
    returned_ = false;
    quiet_ = 0;
    return Step::kNothing;
  }
  ++quiet_;
  if (returned_ && quiet_ > wait_) {  // it was right to come back
    wait_ = kFirstWait;
    returned_ = false;
  }
  if (!forward.away) return Step::kNothing;
  if (quiet_ == wait_) return Step::kTrim;
  if (quiet_ <= wait_) return Step::kNothing;
  quiet_ = 0;
  returned_ = true;
  return Step::kReturn;
}

}  // namespace tensorstream

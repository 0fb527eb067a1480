#include "scheduler/order.h"

#include <algorithm>
#include <utility>

namespace tensorstream {
namespace {

// A model whose order is random would else fill the table with every pair of its groups.
constexpr std::size_t kPairsPerGroup = 64;

std::uint64_t pair_key(GroupId before_last, GroupId last) {
  return (static_cast<std::uint64_t>(before_last) << 32U) | last;
}

}  // namespace

OrderTable::OrderTable(std::vector<GroupId> cycle) : cycle_(std::move(cycle)) {
  for (std::size_t i = 0; i < cycle_.size(); ++i) {
    planned_.try_emplace(cycle_[i], cycle_[(i + 1) % cycle_.size()]);
  }
}

bool OrderTable::observe(GroupId group) {
  if (last_ == group) {
    used_again_ = true;
    return true;
  }
  bool expected = true;
  if (last_) {
    learn_again();
    const std::optional<GroupId> next = successor(before_last_, *last_);
    expected = !next || *next == group;
    learn(group);  // guard: order-check
  }
  before_last_ = last_;
  last_ = group;
  used_again_ = false;
  if (!expected) ++surprises_;
  return expected;
}

std::vector<GroupId> OrderTable::upcoming(std::size_t count) const {
  std::vector<GroupId> next_groups;
  std::optional<GroupId> before_last = before_last_;
  std::optional<GroupId> last = last_;
  while (next_groups.size() < count) {
    std::optional<GroupId> next;
    if (last) {
      next = successor(before_last, *last);
    } else if (!cycle_.empty()) {
      next = cycle_.front();
    }
    if (!next) break;
    next_groups.push_back(*next);
    before_last = last;
    last = next;
  }
  return next_groups;
}

std::optional<GroupId> OrderTable::expected_again() const {
  const bool known = before_last_ && again_.contains(pair_key(*before_last_, *last_));
  return known ? last_ : std::nullopt;
}

void OrderTable::restart() {
  before_last_.reset();
  last_.reset();
  used_again_ = false;
}

std::optional<GroupId> OrderTable::successor(std::optional<GroupId> before_last,
                                             GroupId last) const {
  if (before_last) {
    const auto two = after_two_.find(pair_key(*before_last, last));
    if (two != after_two_.end()) return two->second;
  }
  const auto one = after_one_.find(last);
  if (one != after_one_.end()) return one->second;
  const auto planned = planned_.find(last);
  if (planned != planned_.end()) return planned->second;
  return std::nullopt;
}

void OrderTable::learn_again() {
  if (!before_last_) return;
  const std::uint64_t key = pair_key(*before_last_, *last_);
  if (!used_again_) {
    again_.erase(key);
    return;
  }
  const std::size_t groups = std::max(planned_.size(), after_one_.size());
  if (again_.size() >= kPairsPerGroup * groups) again_.clear();
  again_.insert(key);
}

void OrderTable::learn(GroupId group) {
  after_one_[*last_] = group;
  if (!before_last_) return;
  const std::size_t groups = std::max(planned_.size(), after_one_.size());
  const std::uint64_t key = pair_key(*before_last_, *last_);
  if (after_two_.size() >= kPairsPerGroup * groups && !after_two_.contains(key)) {
    after_two_.clear();
  }
  after_two_[key] = group;
}

}  // namespace tensorstream

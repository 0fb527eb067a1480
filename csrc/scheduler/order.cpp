#include "scheduler/order.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace tensorstream {
namespace {

// A model whose order is random would else fill the tables with every pair of its groups.
constexpr std::size_t kEntriesPerGroup = 64;

template <typename Value>
std::optional<Value> find(const std::unordered_map<std::uint64_t, Value>& table,
                          std::uint64_t key) {
  const auto found = table.find(key);
  return found == table.end() ? std::nullopt : std::optional<Value>(found->second);
}

template <typename Value>
void put(std::unordered_map<std::uint64_t, Value>& table, std::uint64_t key, const Value& value,
         std::size_t most) {
  if (table.size() >= most && !table.contains(key)) table.clear();
  table[key] = value;
}

}  // namespace

void OrderTable::Recent::append(GroupId group) {
  if (size_ == kMost) {
    std::shift_left(groups_.begin(), groups_.end(), 1);
    --size_;
  }
  groups_.at(size_++) = group;
}

std::uint64_t OrderTable::Recent::key_of_last(std::size_t count) const {
  std::uint64_t key = count;
  for (std::size_t i = size_ - count; i < size_; ++i) {
    key = (key ^ groups_.at(i)) * 0x9E3779B97F4A7C15U;
    key ^= key >> 32U;
  }
  return key;
}

OrderTable::OrderTable(std::vector<GroupId> cycle) : cycle_(std::move(cycle)) {
  for (std::size_t i = 0; i < cycle_.size(); ++i) {
    planned_.try_emplace(cycle_[i], cycle_[(i + 1) % cycle_.size()]);
  }
}

bool OrderTable::observe(GroupId group) {
  if (!recent_.empty() && recent_.back() == group) {
    used_again_ = true;
    return true;
  }
  bool expected = true;
  if (!recent_.empty()) {
    learn_again();
    const std::optional<GroupId> next = successor(recent_);
    expected = !next || *next == group;
    learn(group);  // guard: order-check
  }
  recent_.append(group);
  used_again_ = false;
  if (!expected) ++surprises_;
  return expected;
}

std::optional<GroupId> OrderTable::Ahead::next() {
  if (left_ == 0) return std::nullopt;
  std::optional<GroupId> next;
  if (!recent_.empty()) {
    next = table_.successor(recent_);
  } else if (!table_.cycle_.empty()) {
    next = table_.cycle_.front();
  }
  if (!next) return std::nullopt;
  recent_.append(*next);
  --left_;
  return next;
}

std::vector<GroupId> OrderTable::upcoming(std::size_t count) const {
  std::vector<GroupId> groups;
  Ahead ahead(*this, count);
  while (const std::optional<GroupId> next = ahead.next()) groups.push_back(*next);
  return groups;
}

std::optional<GroupId> OrderTable::expected_again() const {
  if (recent_.size() < 2) return std::nullopt;
  std::optional<bool> again;
  if (recent_.size() == Recent::kMost)
    again = find(again_after_many_, recent_.key_of_last(Recent::kMost));
  if (!again) again = find(again_after_two_, recent_.key_of_last(2));
  return again.value_or(false) ? std::optional(recent_.back()) : std::nullopt;
}

void OrderTable::restart() {
  recent_.clear();
  used_again_ = false;
}

std::optional<GroupId> OrderTable::successor(const Recent& recent) const {
  if (recent.size() == Recent::kMost) {
    if (const auto next = find(after_many_, recent.key_of_last(Recent::kMost))) return next;
  }
  if (recent.size() >= 2) {
    if (const auto next = find(after_two_, recent.key_of_last(2))) return next;
  }
  for (const auto* table : {&after_one_, &planned_}) {
    const auto next = table->find(recent.back());
    if (next != table->end()) return next->second;
  }
  return std::nullopt;
}

void OrderTable::learn_again() {
  if (recent_.size() < 2) return;
  put(again_after_two_, recent_.key_of_last(2), used_again_, most_entries());
  if (recent_.size() < Recent::kMost) return;
  put(again_after_many_, recent_.key_of_last(Recent::kMost), used_again_, most_entries());
}

void OrderTable::learn(GroupId group) {
  after_one_[recent_.back()] = group;
  if (recent_.size() < 2) return;
  put(after_two_, recent_.key_of_last(2), group, most_entries());
  if (recent_.size() < Recent::kMost) return;
  put(after_many_, recent_.key_of_last(Recent::kMost), group, most_entries());
}

std::size_t OrderTable::most_entries() const {
  return kEntriesPerGroup * std::max(planned_.size(), after_one_.size());
}

}  // namespace tensorstream

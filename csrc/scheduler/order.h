// The order in which groups are used: learnt from the acquires, asked for the next ones.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "tensorstream/plan.h"

namespace tensorstream {

/// A successor table. What follows is looked up by the last eight groups used, then by the last
/// two, then by the last one, then by the planned cyclic order. Eight tell apart where the parts of
/// a block are used in the same order, as in a forward and where backward computes it again. Not
/// thread-safe.
class OrderTable {
 private:
  /// The last groups used, the oldest first, none twice in a row. Looked ahead with at each use.
  class Recent {
   public:
    static constexpr std::size_t kMost = 8;

    /// Forgets the oldest where it is full.
    void append(GroupId group);
    void clear() noexcept { size_ = 0; }
    bool empty() const noexcept { return size_ == 0; }
    std::size_t size() const noexcept { return size_; }
    GroupId back() const { return groups_.at(size_ - 1); }
    /// Of the last `count`. Two that are the same by chance cost a prediction.
    std::uint64_t key_of_last(std::size_t count) const;

   private:
    std::array<GroupId, kMost> groups_{};
    std::size_t size_ = 0;
  };

 public:
  /// The groups expected after the last one observed (from the cycle's start before the first), one
  /// by one, repeats included. The table is not to change meanwhile.
  class Ahead {
   public:
    /// Of `most` groups.
    Ahead(const OrderTable& table, std::size_t most)
        : table_(table), recent_(table.recent_), left_(most) {}
    std::optional<GroupId> next();

   private:
    const OrderTable& table_;
    Recent recent_;
    std::size_t left_;
  };

  /// `cycle` is the planned order of use; until something else is observed, each group is followed
  /// by the next and the last by the first.
  explicit OrderTable(std::vector<GroupId> cycle);

  /// Takes note that `group` is used now. False where something else was expected: a surprise. The
  /// table has learnt it then. The first call, and a group used again while it is the last one
  /// used, are never surprises.
  bool observe(GroupId group);

  /// The next `count` of these.
  std::vector<GroupId> upcoming(std::size_t count) const;

  /// The last group observed, where it is expected to be used again before another is: it was the
  /// last time that the same eight groups, or else the same two, came one after the other. A
  /// backward takes the weights of a group one by one.
  std::optional<GroupId> expected_again() const;

  /// Forgets what came before, but not what was learnt: the next observe() is not a surprise. For a
  /// forward that was abandoned.
  void restart();

  std::uint64_t surprises() const noexcept { return surprises_; }
  /// Pairs of groups whose successor is learnt: at most 64 for each group, then all pairs are
  /// forgotten.
  std::size_t learnt_pairs() const noexcept { return after_two_.size(); }

 private:
  std::optional<GroupId> successor(const Recent& recent) const;
  void learn(GroupId group);
  void learn_again();
  std::size_t most_entries() const;

  std::vector<GroupId> cycle_;
  std::unordered_map<GroupId, GroupId> planned_;
  std::unordered_map<GroupId, GroupId> after_one_;
  std::unordered_map<std::uint64_t, GroupId> after_two_;
  std::unordered_map<std::uint64_t, GroupId> after_many_;
  // Whether the last of them was used again.
  std::unordered_map<std::uint64_t, bool> again_after_two_;
  std::unordered_map<std::uint64_t, bool> again_after_many_;
  Recent recent_;
  bool used_again_ = false;  // the last one
  std::uint64_t surprises_ = 0;
};

}  // namespace tensorstream

// ReadAhead: the disk works while somebody computes.
#pragma once

#include <cstddef>
#include <deque>
#include <set>
#include <span>
#include <stop_token>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "engine/source_table.h"
#include "tensorstream/plan.h"

namespace tensorstream {

/// Brings groups that come soon from the disk into the page cache, on a thread of its own, which
/// sleeps where they are there: it would take a core from who computes. Thread-safe. The source
/// table outlives it.
class ReadAhead {
 public:
  explicit ReadAhead(const SourceTable& sources);
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  /// Wants a group of `tensors`, unless it is wanted or cached already.
  void want(GroupId group, std::span<const TensorId> tensors);
  /// The group is loaded, or about to be: what is left of it is not read ahead any more.
  void drop(GroupId group);

 private:
  struct Wish {
    GroupId group = 0;
    std::vector<TensorId> tensors;
  };

  void run(const std::stop_token& stop);
  void read(const Wish& wish, const std::stop_token& stop) TS_EXCLUDES(mutex_);
  bool is_wanted(GroupId group) const TS_EXCLUDES(mutex_);

  // Constant after construction.
  const SourceTable& sources_;

  // Guarded by mutex_.
  mutable Mutex mutex_;
  std::set<GroupId> wanted_ TS_GUARDED_BY(mutex_);  // since their last load
  std::deque<Wish> wishes_ TS_GUARDED_BY(mutex_);   // of these, those that a disk has to read

  // Own synchronisation.
  ConditionVariable changed_;
  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace tensorstream

#include "engine/read_ahead.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <new>
#include <utility>

#include "base/units.h"
#include "io/reader.h"

namespace tensorstream {
namespace {

// What the disk reads before it is asked whether the group is still wanted.
constexpr std::uint64_t kPieceBytes = 8_MiB;

}  // namespace

ReadAhead::ReadAhead(const SourceTable& sources) : sources_(sources) {
  thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
}

ReadAhead::~ReadAhead() {
  thread_.request_stop();
  {
    const MutexLock lock(mutex_);
    changed_.notify_all();
  }
  thread_.join();
}

void ReadAhead::want(GroupId group, std::span<const TensorId> tensors) {
  const MutexLock lock(mutex_);
  if (!wanted_.insert(group).second) return;
  const auto cached = [&](TensorId tensor) { return sources_.cached(tensor); };
  if (std::ranges::all_of(tensors, cached)) return;
  wishes_.push_back({group, {tensors.begin(), tensors.end()}});
  changed_.notify_all();
}

void ReadAhead::drop(GroupId group) {
  const MutexLock lock(mutex_);
  wanted_.erase(group);
}

bool ReadAhead::is_wanted(GroupId group) const {
  const MutexLock lock(mutex_);
  return wanted_.contains(group);
}

void ReadAhead::run(const std::stop_token& stop) {
  while (true) {
    Wish wish;
    {
      MutexLock lock(mutex_);
      while (wishes_.empty() && !stop.stop_requested()) changed_.wait(lock);
      if (stop.stop_requested()) return;
      wish = std::move(wishes_.front());
      wishes_.pop_front();
    }
    read(wish, stop);
  }
}

void ReadAhead::read(const Wish& wish, const std::stop_token& stop) {
  std::vector<BoundExtent> extents;
  try {
    for (const TensorId tensor : wish.tensors) {
      std::ranges::move(sources_.extents(tensor), std::back_inserter(extents));
    }
  } catch (const std::bad_alloc&) {  // the group is read when it is used
  }
  for (const BoundExtent& extent : extents) {
    for (std::uint64_t done = 0; done < extent.size_bytes; done += kPieceBytes) {
      if (stop.stop_requested() || !is_wanted(wish.group)) return;
      extent.reader->prefetch(extent.offset_bytes + done,
                              std::min(kPieceBytes, extent.size_bytes - done));
    }
  }
}

}  // namespace tensorstream

#include "engine/home_table.h"

#include <exception>
#include <utility>

#include "engine/frame_batches.h"

namespace tensorstream {

HomeTable::HomeTable(Device& device, SourceTable& sources, std::span<const Group> groups,
                     std::span<const GroupLayout> layouts)
    : device_(device),
      sources_(sources),
      groups_(groups),
      layouts_(layouts),
      homes_(groups.size()) {}

bool HomeTable::bring(GroupId group, const HomeOptions& options) {
  {
    MutexLock lock(mutex_);
    while (homes_[group].is_coming) came_.wait(lock);  // to be asked again: that may fail
    if (homes_[group].is_there()) return false;
    homes_[group].is_coming = true;
  }
  Home home;
  std::exception_ptr error;
  try {
    home = move(group, options);
  } catch (...) {
    error = std::current_exception();
  }
  const MutexLock lock(mutex_);
  homes_[group].is_coming = false;
  if (!error) homes_[group] = std::move(home);
  came_.notify_all();
  if (error) std::rethrow_exception(error);
  return true;
}

HomeTable::Home HomeTable::move(GroupId group, const HomeOptions& options) {
  const Group& moved = groups_[group];
  std::vector<std::vector<BoundExtent>> from;
  from.reserve(moved.tensors.size());
  for (const TensorId tensor : moved.tensors) from.push_back(sources_.extents(tensor));
  Home home = make(group, from, options);
  std::shared_ptr<Reader> reader = home.plain;
  if (home.encoded != nullptr) reader = home.encoded;
  for (std::size_t i = 0; i < moved.tensors.size(); ++i) {
    const std::uint64_t size_bytes = sources_.tensors()[moved.tensors[i]].size_bytes;
    // One that was written to meanwhile stays where it is.
    static_cast<void>(sources_.try_move(moved.tensors[i], from[i],
                                        {reader, layouts_[group].offsets_bytes[i], size_bytes}));
  }
  return home;
}

HomeTable::Home HomeTable::make(GroupId group, std::span<const std::vector<BoundExtent>> from,
                                const HomeOptions& options) const {
  const Group& moved = groups_[group];
  const std::vector<TensorSpec>& tensors = sources_.tensors();
  if (options.level.stores_raw() || !is_worth_encoding(moved, tensors)) {
    return {make_home(device_, moved, layouts_[group], sources_, {.budget = options.budget}), {}};
  }
  return {
      {},
      make_encoded_home(device_, {moved, layouts_[group], tensors, from},
                        {options.level, options.batch_bytes, options.slot_bytes, options.budget})};
}

void HomeTable::note_absent(GroupId group) {
  const MutexLock lock(mutex_);
  homes_[group].absent = true;
}

void HomeTable::forget_absent() {
  const MutexLock lock(mutex_);
  for (Home& home : homes_) home.absent = false;
}

std::byte* HomeTable::device_address(GroupId group, const BoundExtent& extent) const {
  const MutexLock lock(mutex_);
  const std::shared_ptr<HostHome>& home = homes_[group].plain;
  if (home == nullptr || extent.reader != home) return nullptr;
  return home->device_address(extent.offset_bytes, extent.size_bytes);
}

HomeSizes HomeTable::sizes() const {
  HomeSizes sizes;
  const MutexLock lock(mutex_);
  for (std::size_t group = 0; group < homes_.size(); ++group) {
    if (const auto& plain = homes_[group].plain) sizes.pinned_bytes += plain->pinned_bytes();
    const auto& encoded = homes_[group].encoded;
    if (encoded == nullptr) continue;
    sizes.pinned_bytes += encoded->pinned_bytes();
    sizes.coded_bytes += encoded->held_bytes();
    for (const TensorId tensor : groups_[group].tensors) {
      sizes.decoded_bytes += sources_.tensors()[tensor].size_bytes;
    }
  }
  return sizes;
}

void HomeTable::correct(std::vector<GroupFootprint>& footprints,
                        std::uint64_t kept_page_bytes) const {
  const MutexLock lock(mutex_);
  for (std::size_t group = 0; group < homes_.size(); ++group) {
    const Home& home = homes_[group];
    GroupFootprint& footprint = footprints[group];
    if (home.encoded != nullptr) {
      footprint.coded_bytes = home.encoded->held_bytes();
      footprint.coded_copies = home.encoded->batches().size();
      footprint.kept_bytes = taken_bytes(home.encoded->held_bytes(), kept_page_bytes);
    }
    // Where the system does not pin them, the host decodes, and weights cross as they are.
    const bool coded = home.encoded != nullptr && home.encoded->is_pinned();
    if (home.absent) footprint.home = HomeState::kRefused;
    if (home.is_there()) footprint.home = HomeState::kThere;
    const bool known = home.is_there() || home.absent;
    if (!known || coded) continue;
    footprint.coded_bytes.reset();
    footprint.coded_copies = 0;
    footprint.kept_bytes = 0;
  }
}

}  // namespace tensorstream

#include "engine/source_table.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/units.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

std::vector<BoundExtent> bind_extents(const TensorSpec& tensor,
                                      const std::vector<std::shared_ptr<Reader>>& sources) {
  std::vector<BoundExtent> result;
  std::uint64_t total = 0;
  for (const Extent& extent : tensor.extents) {
    if (extent.source >= sources.size()) {
      throw ConfigError("tensor '" + tensor.name + "' names source " +
                        std::to_string(extent.source) + " of " + std::to_string(sources.size()));
    }
    const std::shared_ptr<Reader>& reader = sources[extent.source];
    const auto end = checked_add(extent.offset_bytes, extent.size_bytes);
    if (!end || *end > reader->size_bytes()) {  // guard: extent-bounds
      throw ConfigError("tensor '" + tensor.name + "' wants " + std::to_string(extent.size_bytes) +
                        " bytes at offset " + std::to_string(extent.offset_bytes) + " of '" +
                        reader->name() + "', which has " + std::to_string(reader->size_bytes()));
    }
    if (extent.size_bytes > tensor.size_bytes - total) {
      throw ConfigError("the extents of tensor '" + tensor.name + "' hold more than its " +
                        std::to_string(tensor.size_bytes) + " bytes");
    }
    total += extent.size_bytes;
    result.push_back({reader, extent.offset_bytes, extent.size_bytes});
  }
  if (total != tensor.size_bytes) {
    throw ConfigError("the extents of tensor '" + tensor.name + "' hold " + std::to_string(total) +
                      " bytes, not its " + std::to_string(tensor.size_bytes));
  }
  return result;
}

std::vector<std::shared_ptr<Reader>> pinned_files_of(
    const std::vector<std::shared_ptr<Reader>>& sources) {
  std::vector<std::shared_ptr<Reader>> pinned;
  std::ranges::copy_if(sources, std::back_inserter(pinned),
                       [](const auto& reader) { return reader->pinned_file() != nullptr; });
  return pinned;
}

}  // namespace

SourceTable::SourceTable(const std::vector<std::shared_ptr<Reader>>& sources,
                         std::vector<TensorSpec> tensors)
    : tensors_(std::move(tensors)) {
  pinned_files_ = pinned_files_of(sources);  // guard: pinned-files-outlive-loads
  const MutexLock lock(mutex_);
  bound_.reserve(tensors_.size());
  for (const TensorSpec& tensor : tensors_) bound_.push_back(bind_extents(tensor, sources));
}

std::vector<BoundExtent> SourceTable::extents(TensorId tensor) const {
  const MutexLock lock(mutex_);
  return bound_.at(tensor);
}

const std::byte* SourceTable::address(TensorId tensor) const {
  const MutexLock lock(mutex_);
  const std::vector<BoundExtent>& pieces = bound_.at(tensor);
  return pieces.size() == 1 ? pieces[0].reader->address(pieces[0].offset_bytes) : nullptr;
}

void SourceTable::read(TensorId tensor, std::uint64_t offset_bytes,
                       std::span<std::byte> out) const {
  std::uint64_t skip = offset_bytes;
  for (const BoundExtent& piece : extents(tensor)) {
    if (out.empty()) return;
    if (skip >= piece.size_bytes) {
      skip -= piece.size_bytes;
      continue;
    }
    const std::uint64_t size = std::min<std::uint64_t>(piece.size_bytes - skip, out.size());
    piece.reader->read(piece.offset_bytes + skip, out.first(size));
    out = out.subspan(size);
    skip = 0;
  }
  if (!out.empty()) {
    throw ConfigError("a read of tensor '" + tensors_.at(tensor).name + "' passes its end by " +
                      std::to_string(out.size()) + " bytes");
  }
}

bool SourceTable::cached(TensorId tensor) const noexcept {
  const MutexLock lock(mutex_);
  return std::ranges::all_of(bound_[tensor], [](const BoundExtent& piece) {
    return piece.reader->cached(piece.offset_bytes, piece.size_bytes);
  });
}

bool SourceTable::in_files(std::span<const TensorId> tensors) const {
  const MutexLock lock(mutex_);
  return std::ranges::any_of(tensors, [&](TensorId tensor) TS_REQUIRES(mutex_) {
    return std::ranges::any_of(bound_.at(tensor), [](const BoundExtent& piece) {
      return piece.reader->tier() == Tier::kDisk;
    });
  });
}

bool SourceTable::in_pinned_files(std::span<const TensorId> tensors) const {
  const MutexLock lock(mutex_);
  return std::ranges::all_of(tensors, [&](TensorId tensor) TS_REQUIRES(mutex_) {
    return std::ranges::all_of(bound_.at(tensor), [](const BoundExtent& piece) {
      return piece.reader->pinned_file() != nullptr;
    });
  });
}

std::vector<BoundExtent> SourceTable::replace(TensorId tensor, std::shared_ptr<Reader> reader) {
  const std::uint64_t size = reader->size_bytes();
  return replace(tensor, BoundExtent{std::move(reader), 0, size});
}

std::vector<BoundExtent> SourceTable::replace(TensorId tensor, BoundExtent extent) {
  if (extent.size_bytes != tensors_.at(tensor).size_bytes) {  // guard: replaced-size
    throw ConfigError("new bytes for tensor '" + tensors_.at(tensor).name + "' are " +
                      std::to_string(extent.size_bytes) + ", not its " +
                      std::to_string(tensors_.at(tensor).size_bytes));
  }
  std::vector<BoundExtent> now;
  now.push_back(std::move(extent));
  const MutexLock lock(mutex_);
  return std::exchange(bound_.at(tensor), std::move(now));
}

bool SourceTable::try_move(TensorId tensor, std::vector<BoundExtent>& from, BoundExtent to) {
  std::vector<BoundExtent> now;
  now.push_back(std::move(to));
  const MutexLock lock(mutex_);
  std::vector<BoundExtent>& bound = bound_.at(tensor);
  const bool same = std::ranges::equal(bound, from, [](const BoundExtent& a, const BoundExtent& b) {
    return a.reader == b.reader && a.offset_bytes == b.offset_bytes;
  });
  if (!same) return false;  // guard: moved-unchanged
  bound.swap(now);
  from.swap(now);  // goes after every lock, with the caller's
  return true;
}

std::uint64_t SourceTable::ram_bytes() const {
  const MutexLock lock(mutex_);
  std::uint64_t total = 0;
  for (const std::vector<BoundExtent>& pieces : bound_) {
    for (const BoundExtent& piece : pieces) {
      if (piece.reader->tier() == Tier::kRam) total += piece.size_bytes;
    }
  }
  return total;
}

}  // namespace tensorstream

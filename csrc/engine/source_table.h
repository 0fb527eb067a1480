// The recipes of a model's tensors: which bytes of which reader make each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "io/reader.h"
#include "tensorstream/engine.h"

namespace tensorstream {

/// A piece of a tensor, bound to its reader.
struct BoundExtent {
  std::shared_ptr<Reader> reader;  // shared with the table and with loads under way
  std::uint64_t offset_bytes = 0;
  std::uint64_t size_bytes = 0;
};

/// Thread-safe.
class SourceTable {
 public:
  /// Raises ConfigError where extents name no source, pass its end, or do not add up to their
  /// tensor.
  SourceTable(const std::vector<std::shared_ptr<Reader>>& sources, std::vector<TensorSpec> tensors);

  const std::vector<TensorSpec>& tensors() const noexcept { return tensors_; }

  /// The extents of a tensor as they are now. They stay readable after a replace().
  std::vector<BoundExtent> extents(TensorId tensor) const;
  /// The tensor's address where it is one piece of RAM; null elsewhere.
  const std::byte* address(TensorId tensor) const;
  /// Reads `out.size()` bytes of the tensor from `offset_bytes` on. Raises IoError.
  void read(TensorId tensor, std::uint64_t offset_bytes, std::span<std::byte> out) const;
  /// Whether the tensor can be read without a wait for a disk, as Reader::cached().
  bool cached(TensorId tensor) const noexcept;
  /// Whether bytes of some of the tensors are read from files.
  bool in_files(std::span<const TensorId> tensors) const;
  /// Whether all bytes of the tensors are in files that the device copies from (PinnedFile).
  bool in_pinned_files(std::span<const TensorId> tensors) const;
  /// Makes `reader`, whole, the tensor's bytes. Returns the old ones, for the caller to drop once
  /// it holds no lock: what a reader keeps alive may run any code when it goes.
  std::vector<BoundExtent> replace(TensorId tensor, std::shared_ptr<Reader> reader);
  /// The same for a part of a reader that several tensors share.
  std::vector<BoundExtent> replace(TensorId tensor, BoundExtent extent);
  /// Makes `to`, which holds a copy of what was read from `from`, the tensor's bytes, unless others
  /// are by now: false then.
  [[nodiscard]] bool try_move(TensorId tensor, std::vector<BoundExtent>& from, BoundExtent to);
  /// Bytes of tensors that RAM owns.
  std::uint64_t ram_bytes() const;

 private:
  // Constant after construction.
  const std::vector<TensorSpec> tensors_;
  // Shared with the extents. Loads let readers go in callbacks, where these must not end.
  std::vector<std::shared_ptr<Reader>> pinned_files_;

  // Guarded by mutex_.
  mutable Mutex mutex_;
  std::vector<std::vector<BoundExtent>> bound_ TS_GUARDED_BY(mutex_);
};

}  // namespace tensorstream

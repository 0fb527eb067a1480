#include "engine/load.h"

#include <algorithm>

#include "base/units.h"

namespace tensorstream {
namespace {

// Largest piece that one thread reads while others read the next: small enough that they end
// together, and far above the cost of a call.
constexpr std::uint64_t kSharedReadBytes = 2_MiB;

}  // namespace

void Load::add(const BoundExtent& extent, std::byte* target, std::uint64_t piece_bytes) {
  extents_.push_back(extent);
  (extent.reader->tier() == Tier::kRam ? ram_bytes_ : disk_bytes_) += extent.size_bytes;
  for (std::uint64_t done = 0; done < extent.size_bytes;) {
    const std::uint64_t offset = extent.offset_bytes + done;
    const std::byte* const source = extent.reader->address(offset);
    const std::uint64_t most =
        source != nullptr ? piece_bytes : std::min(piece_bytes, kSharedReadBytes);
    const std::uint64_t size = std::min(most, extent.size_bytes - done);
    if (source != nullptr) {
      copies_.push_back({source, {target + done, size}});
    } else {
      reads_.push_back({extent.reader.get(), offset, {target + done, size}});
    }
    done += size;
  }
}

bool Load::is_large() const noexcept { return disk_bytes_ > kSharedReadBytes; }

void Load::read() noexcept {
  for (std::size_t index = next_++; index < reads_.size(); index = next_++) {
    const Read& piece = reads_[index];
    try {
      piece.reader->read(piece.offset_bytes, piece.target);
    } catch (...) {  // acquire() raises it
      next_ = reads_.size();
      const MutexLock lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
}

std::exception_ptr Load::error() const {
  const MutexLock lock(mutex_);
  return error_;
}

}  // namespace tensorstream

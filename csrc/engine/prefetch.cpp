// What options mean on a device.
#include "engine/prefetch.h"

#include <algorithm>

#include "base/units.h"
#include "device/device.h"
#include "tensorstream/engine.h"

namespace tensorstream {

ComputePlace compute_place(const Device& device) noexcept {
  return device.host_accessible() ? ComputePlace::kHost : ComputePlace::kAccelerator;
}

Prefetch resolve_prefetch(Prefetch prefetch, ComputePlace place) noexcept {
  if (prefetch != Prefetch::kAdaptive) return prefetch;
  return place == ComputePlace::kHost ? Prefetch::kReadAhead : Prefetch::kAhead;
}

Prefetch prefetch_for(Prefetch prefetch, FileBackend backend) noexcept {
  const bool past_page_cache = backend == FileBackend::kDirect || backend == FileBackend::kIoUring;
  return prefetch == Prefetch::kAdaptive && past_page_cache ? Prefetch::kAhead : prefetch;
}

Loading loading_of(Prefetch prefetch) noexcept {
  return prefetch == Prefetch::kReadAhead ? Loading::kAtUse : Loading::kAhead;
}

std::uint64_t spared_bytes(std::uint64_t budget_bytes) noexcept {
  constexpr std::uint64_t kShare = 16;
  constexpr std::uint64_t kMost = 256_MiB;
  return std::min(budget_bytes / kShare, kMost);
}

std::uint64_t outside_bytes(std::uint64_t budget_bytes) noexcept {
  constexpr std::uint64_t kShare = 32;
  constexpr std::uint64_t kMost = 64_MiB;
  return std::min(budget_bytes / kShare, kMost);
}

}  // namespace tensorstream

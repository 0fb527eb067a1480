// What a prefetch means on a device.
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

Loading loading_of(Prefetch prefetch) noexcept {
  return prefetch == Prefetch::kReadAhead ? Loading::kAtUse : Loading::kAhead;
}

}  // namespace tensorstream

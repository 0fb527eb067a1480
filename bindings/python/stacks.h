// What threads are in: their frames, read from another thread.
#pragma once

#include <cstdint>
#include <span>

#include "bindings.h"

namespace tensorstream {

/// No garbage is collected while it lives: Python 3.11 does so as it makes an object, a frame's
/// too. What a collection ends may let other threads run on; the frame that was looked for is gone
/// then, and what lies in its place is returned as one (python/cpython#106883). With the GIL.
class Uncollected {
 public:
  Uncollected() : collects_(PyGC_Disable() != 0) {}
  ~Uncollected() {
    if (collects_) PyGC_Enable();
  }
  Uncollected(const Uncollected&) = delete;
  Uncollected& operator=(const Uncollected&) = delete;

 private:
  const bool collects_;
};

/// Whether one of `frames` is on the stack of another thread.
bool is_on_stack_of(std::uint64_t thread, std::span<const nb::object> frames);
/// Whether one of `frames` is `frame`, or called it: of the calling thread, or within an
/// Uncollected.
bool is_on_stack(nb::object frame, std::span<const nb::object> frames);

}  // namespace tensorstream

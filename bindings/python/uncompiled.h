// Uncompiled: what runs is the engine's own Python, which torch.compile is not to take for itself.
#pragma once

#include <utility>

#include "bindings.h"

namespace tensorstream {

/// While it lives, torch.compile takes no frame of this thread.
class UncompiledScope {
 public:
  /// `set_eval_frame` is torch's: it takes what compiles frames, or None, and gives the last one.
  explicit UncompiledScope(const nb::object& set_eval_frame)
      : set_eval_frame_(set_eval_frame), before_(set_eval_frame(nb::none())) {}
  ~UncompiledScope() {
    if (before_.is_none()) return;
    // With an error of ours under way, which is to be seen.
    const nb::error_scope error;
    set_eval_frame_(before_);
  }
  UncompiledScope(const UncompiledScope&) = delete;
  UncompiledScope& operator=(const UncompiledScope&) = delete;

 private:
  const nb::object& set_eval_frame_;
  const nb::object before_;
};

/// A function that runs as it is, whoever calls it.
class Uncompiled {
 public:
  Uncompiled(nb::object function, nb::object set_eval_frame)
      : function_(std::move(function)), set_eval_frame_(std::move(set_eval_frame)) {}

  nb::object call(const nb::args& args, const nb::kwargs& kwargs) const;

 private:
  template <typename Visit>
  friend void visit_references(Uncompiled& uncompiled, const Visit& visit) {
    visit(uncompiled.function_);
    visit(uncompiled.set_eval_frame_);
  }

  nb::object function_;
  nb::object set_eval_frame_;
};

}  // namespace tensorstream

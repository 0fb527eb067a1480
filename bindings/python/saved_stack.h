// Autograd's hooks for saved tensors, pushed and popped with leases.
#pragma once

#include "bindings.h"

namespace tensorstream {

/// The weights that are lent now, and the pair of hooks that packs what autograd saves of them.
/// Every call holds the GIL.
class SavedStack {
 public:
  /// `pack` and `unpack` are the pair; the others are torch's functions: whether this thread takes
  /// hooks, push, pop, and the pair on top.
  SavedStack(nb::object pack, nb::object unpack, nb::object takes, nb::object push, nb::object pop,
             nb::object top);

  /// Makes autograd of this thread use the hooks for `lent` too; false where it takes none now.
  bool push(const nb::object& lent);
  /// Ends the last push() of `lent`; `pushed` is what it returned.
  void pop(const nb::object& lent, bool pushed);
  /// What is lent, the last lent last.
  const nb::list& lent() const noexcept { return lent_; }
  /// The pair below ours, which autograd would use here without them; None where there is none.
  nb::object outer() const;

 private:
  template <typename Visit>
  friend void visit_references(SavedStack& stack, const Visit& visit) {
    visit(stack.lent_);
    visit(stack.outer_);
    visit(stack.pack_);
    visit(stack.unpack_);
  }

  /// What outer() is once ours are pushed.
  nb::object pair_below() const;

  nb::list lent_;
  nb::list outer_;  // of each push
  nb::object pack_;
  nb::object unpack_;
  // Functions of modules: they hold nothing of a model.
  nb::object takes_;
  nb::object push_;
  nb::object pop_;
  nb::object top_;
};

}  // namespace tensorstream

#include "saved_stack.h"

#include <utility>

#include "references.h"

namespace tensorstream {

using namespace nb::literals;

SavedStack::SavedStack(nb::object pack, nb::object unpack, nb::object takes, nb::object push,
                       nb::object pop, nb::object top)
    : pack_(std::move(pack)),
      unpack_(std::move(unpack)),
      takes_(std::move(takes)),
      push_(std::move(push)),
      pop_(std::move(pop)),
      top_(std::move(top)) {}

bool SavedStack::push(const nb::object& lent) {
  const bool takes = takes_().is(nb::bool_(true));
  outer_.append(takes ? pair_below() : nb::none());
  lent_.append(lent);
  if (takes) push_(pack_, unpack_);
  return takes;
}

nb::object SavedStack::pair_below() const {
  const nb::object top = top_(true);
  const bool is_ours = !top.is_none() && nb::object(top[0]).is(pack_);
  return is_ours ? outer() : top;
}

nb::object SavedStack::outer() const {
  if (outer_.size() == 0) return nb::none();
  return outer_[outer_.size() - 1];
}

void SavedStack::pop(const nb::object& lent, bool pushed) {
  for (std::size_t position = lent_.size(); position-- > 0;) {
    if (!nb::object(lent_[position]).is(lent)) continue;
    nb::del(lent_[position]);
    nb::del(outer_[position]);
    break;
  }
  if (!pushed) return;
  const nb::object top = top_(true);
  if (top.is_none() || !nb::object(top[0]).is(pack_)) return;
  pop_();
}

void init_saved_stack(nb::module_& module) {
  nb::class_<SavedStack>(module, "SavedStack", nb::type_slots(Collected<SavedStack>::slots.data()))
      .def(nb::init<nb::object, nb::object, nb::object, nb::object, nb::object, nb::object>(),
           "pack"_a, "unpack"_a, "takes"_a, "push"_a, "pop"_a, "top"_a)
      .def("push", &SavedStack::push, "lent"_a,
           "Makes autograd of this thread use the hooks for `lent` too; False where it takes none.")
      .def("pop", &SavedStack::pop, "lent"_a, "pushed"_a, "Ends the last push() of `lent`.")
      .def_prop_ro("outer", &SavedStack::outer,
                   "The pair that autograd would use here without ours, or None.")
      .def_prop_ro("lent", &SavedStack::lent, "What is lent, the last lent last.");
}

}  // namespace tensorstream

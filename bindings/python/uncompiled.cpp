#include "uncompiled.h"

#include "references.h"

namespace tensorstream {

using namespace nb::literals;

nb::object Uncompiled::call(const nb::args& args, const nb::kwargs& kwargs) const {
  const UncompiledScope scope(set_eval_frame_);
  return function_(*args, **kwargs);
}

void init_uncompiled(nb::module_& module) {
  nb::class_<Uncompiled>(module, "Uncompiled", nb::type_slots(Collected<Uncompiled>::slots.data()))
      .def(nb::init<nb::object, nb::object>(), "function"_a, "set_eval_frame"_a)
      .def("__call__", &Uncompiled::call, "args"_a, "kwargs"_a,
           nb::sig("def __call__(self, *args: object, **kwargs: object) -> object"));
}

}  // namespace tensorstream

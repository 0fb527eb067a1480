// What objects of the extension hold of Python's, shown to its collector of cycles.
#pragma once

#include <array>

#include "bindings.h"

namespace tensorstream {

/// Slots of a type whose objects may be part of cycles. `visit_references(T&, f)`, found by the
/// type of its argument, calls `f` with every nb::object that a T holds. Methods of an object whose
/// references were taken away are not called any more.
template <typename T>
struct Collected {
  static int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (!nb::inst_ready(self)) return 0;  // its constructor runs
    int result = 0;
    visit_references(*nb::inst_ptr<T>(self), [&](nb::object& held) {
      if (result == 0 && held.is_valid()) result = visit(held.ptr(), arg);
    });
    return result;
  }
  static int clear(PyObject* self) {
    if (!nb::inst_ready(self)) return 0;
    visit_references(*nb::inst_ptr<T>(self), [](nb::object& held) { held.reset(); });
    return 0;
  }
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-reinterpret-cast)
  static inline std::array<PyType_Slot, 3> slots{
      {{Py_tp_traverse, (void*)traverse}, {Py_tp_clear, (void*)clear}, {0, nullptr}}};
};

}  // namespace tensorstream

// Parameters of leased groups: put on their places and parked again, at each use of a group.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "bindings.h"

namespace tensorstream {
namespace {

using namespace nb::literals;

/// What of torch's Python objects is used for that, looked up once. Every list has one entry a
/// parameter of a group; every call holds the GIL.
class ParameterSwitch {
 public:
  /// `data` and `version` are descriptors of torch's base class of tensors; `mark` is the attribute
  /// of a parameter that holds its weight; `use_count` says how many holders the storage behind a
  /// handle has.
  ParameterSwitch(nb::type_object lent, nb::type_object parked, nb::object data, nb::object version,
                  nb::str mark, nb::object use_count)
      : lent_(std::move(lent)),
        parked_(std::move(parked)),
        data_(std::move(data)),
        version_(std::move(version)),
        mark_(std::move(mark)),
        use_count_(std::move(use_count)),
        class_name_(nb::steal<nb::object>(PyUnicode_InternFromString("__class__"))) {}

  /// Puts parked parameters on views; without any they are on them already. Returns how many: the
  /// one after those is not parked, and neither it nor what follows is changed.
  std::size_t lend(const nb::list& parameters, const std::optional<nb::list>& views) const {
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const nb::object parameter = parameters[i];
      if (!parameter.type().is(parked_)) return i;
      set_class(parameter, lent_);
      if (views) set_data(parameter, (*views)[i]);
    }
    return parameters.size();
  }

  /// Parks parameters, on `poisons`; without any they stay on their views.
  void park(const nb::list& parameters, const std::optional<nb::list>& poisons) const {
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const nb::object parameter = parameters[i];
      if (poisons) {
        if (!parameter.type().is(lent_)) set_class(parameter, lent_);
        set_data(parameter, (*poisons)[i]);
      }
      set_class(parameter, parked_);
    }
  }

  /// The versions of lent parameters.
  std::vector<std::int64_t> versions(const nb::list& parameters) const {
    std::vector<std::int64_t> result;
    for (const nb::handle parameter : parameters) result.push_back(version(parameter));
    return result;
  }

  /// Positions of the parameters that are of another version, or hold another weight. Torch raises
  /// the version wherever it puts a tensor on other memory, but where it exchanges two.
  std::vector<std::size_t> changed(const nb::list& parameters, const nb::list& versions,
                                   const nb::list& weights) const {
    std::vector<std::size_t> result;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const nb::object parameter = parameters[i];
      const nb::object weight = nb::getattr(parameter, mark_, nb::none());
      const bool same = weight.is(nb::object(weights[i]));
      if (!same || version(parameter) != nb::cast<std::int64_t>(versions[i])) result.push_back(i);
    }
    return result;
  }

  /// Positions of the storages that have more holders than `users` says, and `more` besides.
  std::vector<std::size_t> held(const nb::list& handles, const nb::list& users,
                                std::int64_t more) const {
    std::vector<std::size_t> result;
    for (std::size_t i = 0; i < handles.size(); ++i) {
      const nb::object now = call(use_count_, handles[i]);
      const std::int64_t expected = nb::cast<std::int64_t>(users[i]) + more;
      if (nb::cast<std::int64_t>(now) > expected) result.push_back(i);
    }
    return result;
  }

 private:
  static nb::object call(const nb::object& function, const nb::handle argument) {
    PyObject* const result = PyObject_CallOneArg(function.ptr(), argument.ptr());
    if (result == nullptr) throw nb::python_error();
    return nb::steal<nb::object>(result);
  }
  void set_class(const nb::handle parameter, const nb::type_object& type) const {
    if (PyObject_SetAttr(parameter.ptr(), class_name_.ptr(), type.ptr()) != 0) {
      throw nb::python_error();
    }
  }
  void set_data(const nb::handle parameter, const nb::handle value) const {
    if (Py_TYPE(data_.ptr())->tp_descr_set(data_.ptr(), parameter.ptr(), value.ptr()) != 0) {
      throw nb::python_error();
    }
  }
  std::int64_t version(const nb::handle parameter) const {
    PyObject* const result =
        Py_TYPE(version_.ptr())
            ->tp_descr_get(version_.ptr(), parameter.ptr(),
                           reinterpret_cast<PyObject*>(Py_TYPE(parameter.ptr())));
    if (result == nullptr) throw nb::python_error();
    return nb::cast<std::int64_t>(nb::steal<nb::object>(result));
  }

  // Classes, descriptors and functions of modules: they hold nothing of a model.
  nb::type_object lent_;
  nb::type_object parked_;
  nb::object data_;
  nb::object version_;
  nb::str mark_;
  nb::object use_count_;
  nb::object class_name_;
};

}  // namespace

void init_parameters(nb::module_& module) {
  nb::class_<ParameterSwitch>(module, "ParameterSwitch")
      .def(
          nb::init<nb::type_object, nb::type_object, nb::object, nb::object, nb::str, nb::object>(),
          "lent"_a, "parked"_a, "data"_a, "version"_a, "mark"_a, "use_count"_a)
      .def("lend", &ParameterSwitch::lend, "parameters"_a, "views"_a.none(),
           "Puts parked parameters on views, if any; how many, up to the first that is not parked.")
      .def("park", &ParameterSwitch::park, "parameters"_a, "poisons"_a.none(),
           "Parks parameters, on `poisons` or, without any, on their views.")
      .def("versions", &ParameterSwitch::versions, "parameters"_a,
           "The versions of lent parameters.")
      .def("changed", &ParameterSwitch::changed, "parameters"_a, "versions"_a, "weights"_a,
           "Positions of lent parameters that are of another version or hold another weight.")
      .def("held", &ParameterSwitch::held, "handles"_a, "users"_a, "more"_a,
           "Positions of storages that have more holders than that, and `more` besides.");
}

}  // namespace tensorstream

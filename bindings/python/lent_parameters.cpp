#include "lent_parameters.h"

#include <nanobind/stl/vector.h>

#include <algorithm>
#include <utility>

#include "references.h"

namespace tensorstream {
namespace {

using namespace nb::literals;

/// While it lives, torch searches for no `__torch_function__` of this thread's tensors, which is
/// most of what its descriptors take. A context of torch's keeps what was before it, so each scope
/// has its own: what a tensor lets go of may run any code.
class PlainScope {
 public:
  explicit PlainScope(const ParameterTypes& types) : types_(types), context_(types.plainly()) {
    types_.enter_plainly(context_);
  }
  ~PlainScope() {
    const nb::error_scope error;  // one that is under way is to be seen
    try {
      types_.exit_plainly(context_);
    } catch (nb::python_error& failure) {
      failure.discard_as_unraisable("__exit__");
    }
  }
  PlainScope(const PlainScope&) = delete;
  PlainScope& operator=(const PlainScope&) = delete;

 private:
  const ParameterTypes& types_;
  const nb::object context_;
};

/// Of no tensor's, and none that lend() notes of one whose memory was exchanged.
constexpr std::int64_t kNoVersion = -2;

std::int64_t as_number(PyObject* result) {
  if (result == nullptr) throw nb::python_error();
  const nb::object held = nb::steal<nb::object>(result);
  const long long number = PyLong_AsLongLong(result);
  if (number == -1 && PyErr_Occurred() != nullptr) throw nb::python_error();
  return number;
}

/// Sets `data`; its descriptor needs no search for it.
void set_data(const ParameterTypes& types, PyObject* parameter, PyObject* value) {
  PyObject* const data = types.data.ptr();
  if (Py_TYPE(data)->tp_descr_set(data, parameter, value) != 0) throw nb::python_error();
}

/// As `parameter.__class__ = type`, but without its search and checks where the parameter is lent
/// or parked: it became so by an assignment, which gave it a dictionary of its own, and no class of
/// these two turns that back into values beside the object, whose keys would be the class's. They
/// differ in their methods alone.
void set_class(const ParameterTypes& types, PyObject* parameter, const nb::type_object& type) {
  PyTypeObject* const before = Py_TYPE(parameter);
  const nb::handle class_before(reinterpret_cast<PyObject*>(before));
  if (!class_before.is(types.lent) && !class_before.is(types.parked)) {
    nb::setattr(parameter, "__class__", type);
    return;
  }
  Py_INCREF(type.ptr());
  Py_SET_TYPE(parameter, reinterpret_cast<PyTypeObject*>(type.ptr()));
  Py_DECREF(reinterpret_cast<PyObject*>(before));
}

PyObject* item(const nb::list& list, std::size_t position) {
  return PyList_GET_ITEM(list.ptr(), static_cast<Py_ssize_t>(position));
}

}  // namespace

ParameterTypes::ParameterTypes(nb::type_object lent, nb::type_object parked, nb::object data,
                               nb::object version, nb::str mark, nb::object use_count,
                               nb::object plainly, nb::object address)
    : lent(std::move(lent)),
      parked(std::move(parked)),
      data(std::move(data)),
      version(std::move(version)),
      mark(std::move(mark)),
      use_count(std::move(use_count)),
      plainly(std::move(plainly)),
      enter_plainly(this->plainly.attr("__enter__")),
      exit_plainly(this->plainly.attr("__exit__")),
      address(std::move(address)) {}

LentParameters::LentParameters(const ParameterTypes& types, GroupId group, nb::list parameters,
                               nb::list weights, nb::list poisons, nb::list wrappers)
    : types_(types),
      group_(group),
      parameters_(std::move(parameters)),
      weights_(std::move(weights)),
      poisons_(std::move(poisons)),
      wrappers_(std::move(wrappers)) {
  const PlainScope plainly(types_);
  read_versions(versions_);
}

void LentParameters::set_place(std::uint32_t place_number, bool stays, nb::list views,
                               nb::list storages, nb::list handles, nb::dict addresses,
                               bool lie_apart) {
  leave_place();
  place_number_ = place_number;
  stays_ = stays;
  views_ = std::move(views);
  storages_ = std::move(storages);
  handles_ = std::move(handles);
  addresses_ = std::move(addresses);
  lie_apart_ = lie_apart;
  users_.clear();
  for (std::size_t i = 0; i < handles_.size(); ++i) users_.push_back(holders(i));
}

std::size_t LentParameters::lend() {
  const PlainScope plainly(types_);
  const std::size_t count = parameters_.size();
  std::vector<std::size_t> own;
  // Memory that was the parameter's own before shares its version with it, so that what is written
  // to that between uses shows in it, too. One that stays on its place counts as written then, and
  // its place has its bytes.
  if (!is_on_place_) {
    std::swap(versions_, versions_before_);
    read_versions(versions_);
    if (versions_ != versions_before_) own = exchanged_bytes();
  }
  for (std::size_t i = 0; i < count; ++i) {
    PyObject* const parameter = item(parameters_, i);
    if (!nb::handle(parameter).type().is(types_.parked)) return i;
    set_class(types_, parameter, types_.lent);
    if (!is_on_place_ && std::ranges::find(own, i) == own.end()) {
      set_data(types_, parameter, item(views_, i));
    }
  }
  for (const std::size_t position : own) versions_[position] = -1;
  set_classes_of_wrappers();
  wrapper_versions_ = versions_of_wrappers();
  return count;
}

bool LentParameters::may_be_cast() const {
  const PlainScope plainly(types_);
  const auto is_trained = [](nb::handle parameter) {
    return nb::cast<bool>(parameter.attr("requires_grad"));
  };
  return std::any_of(parameters_.begin(), parameters_.end(), is_trained);
}

std::vector<std::size_t> LentParameters::changed() const {
  const PlainScope plainly(types_);
  std::vector<std::size_t> result;
  std::vector<std::int64_t> now;
  read_versions(now);
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const nb::object weight = nb::getattr(item(parameters_, i), types_.mark, nb::none());
    const bool same = weight.ptr() == item(weights_, i);
    if (!same || now[i] != versions_.at(i)) result.push_back(i);
  }
  result.insert(result.end(), exchanged_.begin(), exchanged_.end());
  if (wrapper_versions_ != versions_of_wrappers()) add_written_inner(result);
  std::ranges::sort(result);
  result.erase(std::ranges::unique(result).begin(), result.end());
  return result;
}

void LentParameters::note_exchanged(std::size_t position, bool is_exchanged) {
  std::erase(exchanged_, position);
  if (is_exchanged) exchanged_.push_back(position);
}

// What is written to a wrapper reaches its inner tensors below where torch raises versions.
void LentParameters::add_written_inner(std::vector<std::size_t>& changed) const {
  const std::vector<std::int64_t> now = versions_of_wrappers();
  for (std::size_t i = 0; i < now.size(); ++i) {
    if (now[i] == wrapper_versions_.at(i)) continue;
    for (const nb::handle inner : nb::borrow<nb::list>(wrappers_[i][3])) {
      for (std::size_t position = 0; position < parameters_.size(); ++position) {
        if (inner.is(item(parameters_, position))) changed.push_back(position);
      }
    }
  }
}

void LentParameters::park(const std::vector<std::size_t>& changed) {
  for (const std::size_t position : changed) {  // torch exchanges what objects hold with them
    nb::setattr(nb::object(parameters_[position]), types_.mark, nb::object(weights_[position]));
  }
  const PlainScope plainly(types_);
  exchanged_.clear();
  is_on_place_ = stays_ && changed.empty();
  park_on(is_on_place_ ? nullptr : &poisons_);
  if (!changed.empty()) read_versions(versions_);
}

void LentParameters::leave_place() {
  if (!is_on_place_) return;
  const PlainScope plainly(types_);
  park_on(&poisons_);
  is_on_place_ = false;
}

std::vector<std::size_t> LentParameters::escaped() const {
  std::vector<std::size_t> result;
  for (std::size_t i = 0; i < users_.size(); ++i) {
    if (other_holders(i) > 0) result.push_back(i);
  }
  return result;
}

// Torch counts its own holders. Python has one object for a storage, which is one of those.
std::int64_t LentParameters::holders(std::size_t position) const {
  PyObject* const tensors = PyObject_CallOneArg(types_.use_count.ptr(), item(handles_, position));
  return as_number(tensors) + Py_REFCNT(item(storages_, position));
}

// On `places`, or, without any, where they are. In a PlainScope.
void LentParameters::park_on(const nb::list* places) const {
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    PyObject* const parameter = item(parameters_, i);
    if (places != nullptr) {
      if (!nb::handle(parameter).type().is(types_.lent)) {
        set_class(types_, parameter, types_.lent);
      }
      set_data(types_, parameter, item(*places, i));
    }
    set_class(types_, parameter, types_.parked);
  }
  set_classes_of_wrappers();
}

// One of a class that is neither of the two was exchanged, and is what somebody put there.
void LentParameters::set_classes_of_wrappers() const {
  for (const nb::handle each : wrappers_) {
    const nb::tuple entry = nb::borrow<nb::tuple>(each);
    const nb::object wrapper = entry[0], lent = entry[1], parked = entry[2];
    const nb::list inner = entry[3];
    const bool is_parked = std::any_of(inner.begin(), inner.end(), [&](nb::handle parameter) {
      return parameter.type().is(types_.parked);
    });
    const nb::object& before = is_parked ? lent : parked;
    if (wrapper.type().is(before)) nb::setattr(wrapper, "__class__", is_parked ? parked : lent);
  }
}

// In a PlainScope.
void LentParameters::read_versions(std::vector<std::int64_t>& into) const {
  into.clear();
  into.reserve(parameters_.size());
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    into.push_back(version(item(parameters_, i)));
  }
}

// Positions of parked parameters whose bytes are not what park() put in their place. In a
// PlainScope.
std::vector<std::size_t> LentParameters::exchanged_bytes() const {
  const auto address = [&](PyObject* tensor) {
    return as_number(PyObject_CallOneArg(types_.address.ptr(), tensor));
  };
  std::vector<std::size_t> result;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (address(item(parameters_, i)) != address(item(poisons_, i))) result.push_back(i);
  }
  return result;
}

std::int64_t LentParameters::version(PyObject* parameter) const {
  PyObject* const descriptor = types_.version.ptr();
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(parameter));
  PyObject* const found = Py_TYPE(descriptor)->tp_descr_get(descriptor, parameter, type);
  if (found == nullptr && PyErr_ExceptionMatches(PyExc_RuntimeError) != 0) {
    PyErr_Clear();  // torch's of an inference tensor, which has none: it was exchanged for one
    return kNoVersion;
  }
  return as_number(found);
}

// In a PlainScope.
std::vector<std::int64_t> LentParameters::versions_of_wrappers() const {
  std::vector<std::int64_t> result;
  for (const nb::handle entry : wrappers_) result.push_back(version(nb::object(entry[0]).ptr()));
  return result;
}

void init_lent_parameters(nb::module_& module) {
  nb::class_<ParameterTypes>(module, "ParameterTypes")
      .def(nb::init<nb::type_object, nb::type_object, nb::object, nb::object, nb::str, nb::object,
                    nb::object, nb::object>(),
           "lent"_a, "parked"_a, "data"_a, "version"_a, "mark"_a, "use_count"_a, "plainly"_a,
           "address"_a);
  nb::class_<LentParameters>(module, "LentParameters",
                             nb::type_slots(Collected<LentParameters>::slots.data()))
      .def(nb::init<const ParameterTypes&, GroupId, nb::list, nb::list, nb::list, nb::list>(),
           "types"_a, "group"_a, "parameters"_a, "weights"_a, "poisons"_a, "wrappers"_a,
           nb::keep_alive<1, 2>())
      .def_prop_ro("group", &LentParameters::group)
      .def_prop_ro("place_number", &LentParameters::place_number,
                   "Of the place that the views are on; 0 for none.")
      .def_prop_ro("stays", &LentParameters::stays, "Whether it is on its place between uses.")
      .def_prop_ro("addresses", &LentParameters::addresses)
      .def_rw("depth", &LentParameters::depth, "Of leases, which nest.")
      .def_ro("hooked", &LentParameters::hooked)
      .def("set_place", &LentParameters::set_place, "place_number"_a, "stays"_a, "views"_a,
           "storages"_a, "handles"_a, "addresses"_a, "lie_apart"_a, "Takes views on a place.")
      .def("lend", &LentParameters::lend,
           "Puts parked parameters on the views; how many, up to the first that is not parked.")
      .def("note_exchanged", &LentParameters::note_exchanged, "position"_a, "is_exchanged"_a,
           "Whether a lent parameter lies elsewhere than on its view.")
      .def("changed", &LentParameters::changed,
           "Positions of lent parameters that are of another version or weight, or lie elsewhere.")
      .def("park", &LentParameters::park, "changed"_a, "Parks lent parameters.")
      .def("leave_place", &LentParameters::leave_place,
           "Takes the bytes away from parked parameters that stay on a place.")
      .def("forget_place", &LentParameters::forget_place)
      .def("escaped", &LentParameters::escaped,
           "Positions of parked weights of whose bytes on the place somebody else holds a view.")
      .def("other_holders", &LentParameters::other_holders, "position"_a,
           "How many others hold the storage of a view.");
}

}  // namespace tensorstream

#include "leases.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <exception>
#include <iterator>

#include "references.h"
#include "tensorstream/error.h"
#include "uncompiled.h"

namespace tensorstream {
namespace {

using namespace nb::literals;

/// Runs `step`; the first error of some is kept in `error`.
template <typename Step>
void attempt(std::exception_ptr& error, const Step& step) {
  try {
    step();
  } catch (...) {
    if (!error) error = std::current_exception();
  }
}

BoundEngine& engine_of(const nb::object& held) {
  if (!held.is_valid()) {
    throw UnsupportedError("the model was restored by another thread while this one ran it");
  }
  return nb::cast<BoundEngine&>(held);
}

/// While it lives no handler of a signal runs, where it is begun: what a forward wrote is in no
/// place that a use of the weight in one would find.
class HandlersHeldBack {
 public:
  HandlersHeldBack() = default;
  ~HandlersHeldBack() {
    try {
      end();
    } catch (nb::python_error& error) {
      error.discard_as_unraisable("a handler that waited for a forward");
    }
  }
  HandlersHeldBack(const HandlersHeldBack&) = delete;
  HandlersHeldBack& operator=(const HandlersHeldBack&) = delete;

  void begin(const nb::object& held_back) {
    nb::object context = held_back();
    context.attr("__enter__")();
    context_ = std::move(context);
  }
  /// Handlers of signals that came run now, and may raise.
  void end() {
    if (!context_.is_valid()) return;
    const nb::object context = std::exchange(context_, {});
    context.attr("__exit__")(nb::none(), nb::none(), nb::none());
  }

 private:
  nb::object context_;
};

}  // namespace

Leases::Leases(nb::object owner, nb::object engine, nb::object session, nb::object saved,
               const LeaseFunctions& functions)
    : owner_(std::move(owner)),
      engine_(std::move(engine)),
      session_(std::move(session)),
      saved_(std::move(saved)),
      functions_(functions) {}

bool Leases::enter(const nb::object& frame, const bool& attached) {
  auto& session = nb::cast<Session&>(session_);
  const Session::Entry entry = session.enter(frame);
  if (!attached) {
    if (entry != Session::Entry::kForOther) static_cast<void>(session.leave(frame));
    return false;
  }
  if (entry != Session::Entry::kOutermost) return entry != Session::Entry::kForOther;
  owner_.attr("begun")();
  note_pass(&BoundEngine::note_pass_begun);
  return true;
}

void Leases::leave(const nb::object& frame, const nb::object& output) {
  auto& session = nb::cast<Session&>(session_);
  if (session.is_outermost(frame)) {
    note_pass(&BoundEngine::note_pass_ended);
    owner_.attr("ended")(output);
  }
  static_cast<void>(session.leave(frame));
}

void Leases::note_pass(void (BoundEngine::*edge)()) const {
  const nb::object kept = engine_;  // whatever another thread does meanwhile
  if (!kept.is_valid()) return;
  auto& bound = nb::cast<BoundEngine&>(kept);
  unlocked([&] { (bound.*edge)(); });
}

bool Leases::take(const nb::object& object) {
  auto& group = nb::cast<LentParameters&>(object);
  if (group.depth == 0) {
    if (has_loans()) owner_.attr("settle_loans")(object);
    if (!functions_.prepare.is_none()) functions_.prepare();
    const std::uintptr_t stream = this->stream();
    const std::uint32_t place_number = acquire(group.group(), stream);
    if (place_number == 0) return false;
    last_stream_ = stream;
    try {
      lend(object, group, place_number);
    } catch (...) {
      release(group.group(), stream);
      throw;
    }
  }
  ++group.depth;
  return true;
}

void Leases::lend(const nb::object& object, LentParameters& group, std::uint32_t place_number) {
  if (place_number != group.place_number()) owner_.attr("move")(object, place_number);
  if (!functions_.settle.is_none()) functions_.settle();
  try {
    const std::size_t count = group.lend();
    if (count != group.size()) object.attr("raise_exchanged")(count);
    group.hooked = nb::cast<SavedStack&>(saved_).push(group.addresses());
    if (!group.hooked) object.attr("note_users")();
  } catch (...) {
    object.attr("park_those_lent")();
    throw;
  }
}

// Whatever Python's part of it raises, an interrupt too: the place is another group's soon.
nb::list Leases::park(const nb::object& object, LentParameters& group,
                      const std::vector<std::size_t>& changed) {
  std::exception_ptr error;
  attempt(error, [&] { nb::cast<SavedStack&>(saved_).pop(group.addresses(), group.hooked); });
  nb::list written;
  const auto read = [&] { written = nb::cast<nb::list>(object.attr("values")(changed)); };
  if (!changed.empty()) attempt(error, read);
  group.park(changed);
  if (error) std::rethrow_exception(error);
  return written;
}

nb::object Leases::give_back(const nb::object& object, nb::object output, bool has_returned) {
  auto& group = nb::cast<LentParameters&>(object);
  if (group.depth > 1) {
    --group.depth;
    return output;
  }
  nb::list written;
  nb::object returned = nb::none();  // views among `output`, where any view is held
  std::exception_ptr error;
  HandlersHeldBack handlers;  // from when it is lent on, until what was written is kept
  std::vector<std::size_t> changed;
  attempt(error, [&] { changed = group.changed(); });
  if (!changed.empty()) {
    attempt(error, [&] { handlers.begin(functions_.held_back); });
    attempt(error, [&] { changed = group.changed(); });
  }
  group.depth = 0;
  attempt(error, [&] {
    written = park(object, group, changed);
    if (!group.escaped().empty()) {
      const nb::object own = object.attr("own")(output);
      output = own[0];
      returned = own[1];
    }
  });
  attempt(error, [&] { release(group.group(), stream()); });
  attempt(error, [&] {
    if (written.size() != 0) owner_.attr("keep")(written);
  });
  // Maybe not kept: its place is not to have what its source lacks.
  if (error) attempt(error, [&] { load_anew(group.group(), stream()); });
  if (group.lie_apart()) attempt(error, [&] { object.attr("watch_apart")(); });
  attempt(error, [&] { handlers.end(); });
  if (error) std::rethrow_exception(error);
  drop_casts(group);
  if (has_loans()) object.attr("check_unwritten")();
  if (!returned.is_none() && has_returned) object.attr("check_kept")(returned);
  if (!group.hooked) object.attr("check_unsaved")(returned);
  return output;
}

void Leases::drop_casts(const LentParameters& group) {
  const bool are_cast = functions_.autocasts().is(nb::bool_(true)) && group.may_be_cast();
  if (are_cast) functions_.clear_casts();
}

nb::object Leases::give_back_all(std::vector<nb::object>& groups, nb::object output,
                                 bool has_returned) {
  std::exception_ptr error;
  while (!groups.empty()) {
    const nb::object group = std::move(groups.back());
    groups.pop_back();
    attempt(error, [&] { output = give_back(group, output, has_returned); });
  }
  if (error) std::rethrow_exception(error);
  return output;
}

void Leases::abandon(const nb::list& groups) {
  std::exception_ptr error;
  HandlersHeldBack handlers;
  attempt(error, [&] {
    const bool writes = std::ranges::any_of(groups, [](const nb::handle each) {
      return !nb::cast<LentParameters&>(each).changed().empty();
    });
    if (writes) handlers.begin(functions_.held_back);
  });
  std::vector<std::pair<GroupId, nb::list>> left;
  for (const nb::handle each : groups) {
    const nb::object object = nb::borrow(each);
    auto& group = nb::cast<LentParameters&>(object);
    group.depth = 0;
    std::vector<std::size_t> changed;
    bool is_known = false;
    attempt(error, [&] {
      changed = group.changed();
      is_known = true;
    });
    nb::list written;
    attempt(error, [&] { written = park(object, group, changed); });
    if (!is_known || !changed.empty()) left.emplace_back(group.group(), std::move(written));
  }
  attempt(error, [&] { release_all(stream()); });
  for (const auto& [group, written] : left) {
    std::exception_ptr lost;
    attempt(lost, [&] {
      if (written.size() != 0) owner_.attr("keep")(written);
    });
    // Its place is not to have what its source lacks.
    if (lost || written.size() == 0) attempt(error, [&] { load_anew(group, stream()); });
    if (!error) error = lost;
  }
  for (const nb::handle each : groups) {
    if (!nb::cast<LentParameters&>(each).lie_apart()) continue;
    attempt(error, [&] { each.attr("watch_apart")(); });
  }
  attempt(error, [&] { handlers.end(); });
  if (error) std::rethrow_exception(error);
}

std::uint32_t Leases::acquire(GroupId group, std::uintptr_t stream) {
  const nb::object kept = engine_;  // whatever another thread does meanwhile
  auto& bound = engine_of(kept);
  return unlocked([&]() -> std::uint32_t {
    if (!bound.engine().acquire(group, bound.stream(stream))) return 0;
    return bound.engine().place_number(group);
  });
}

void Leases::release(GroupId group, std::uintptr_t stream) {
  const nb::object kept = engine_;
  auto& bound = engine_of(kept);
  unlocked([&] { bound.engine().release(group, bound.stream(stream)); });
}

void Leases::release_all(std::uintptr_t stream) {
  const nb::object kept = engine_;
  auto& bound = engine_of(kept);
  unlocked([&] { bound.engine().release_all(bound.stream(stream)); });
}

// At its next use.
void Leases::load_anew(GroupId group, std::uintptr_t stream) {
  const nb::object kept = engine_;
  auto& bound = engine_of(kept);
  unlocked([&] {
    bound.engine().note_write(bound.engine().groups()[group].tensors.front(), bound.stream(stream));
  });
}

std::uintptr_t Leases::stream() const { return nb::cast<std::uintptr_t>(functions_.stream()); }

bool Leases::has_loans() const { return static_cast<bool>(nb::bool_(functions_.loans)); }

Unit::Unit(nb::object leases, nb::list groups_of_module, nb::str module_code,
           nb::object refuse_tracing, nb::object set_eval_frame)
    : groups(std::move(groups_of_module)),
      leases_(std::move(leases)),
      module_code_(std::move(module_code)),
      refuse_tracing_(std::move(refuse_tracing)),
      set_eval_frame_(std::move(set_eval_frame)) {}

// Torch calls the post-hook after a pre-hook that failed, too, but for what is no Exception.
void Unit::before(const nb::object& /*module*/, const nb::object& /*args*/) {
  bool is_noted = false;
  try {
    begin_forward(is_noted);
  } catch (const nb::python_error& error) {
    if (!is_noted && error.matches(PyExc_Exception)) running_.push_back({});
    throw;
  } catch (...) {
    if (!is_noted) running_.push_back({});
    throw;
  }
}

void Unit::begin_forward(bool& is_noted) {
  const UncompiledScope scope(set_eval_frame_);
  refuse_tracing_();
  auto& leases = nb::cast<Leases&>(leases_);
  const nb::object frame = frame_of_call();
  if (!leases.enter(frame, attached)) {
    running_.push_back({frame});
    is_noted = true;
    return;
  }
  const nb::list wanted = groups;
  std::vector<nb::object> held;
  std::exception_ptr error;
  attempt(error, [&] {
    for (const nb::handle group : wanted) {
      nb::object leased = nb::borrow(group);
      if (leases.take(leased)) held.push_back(std::move(leased));
    }
  });
  running_.push_back({frame, true, std::move(held)});  // what was leased is given back by after()
  is_noted = true;
  if (error) std::rethrow_exception(error);
}

void Unit::begin(const nb::object& module, const nb::object& args) {
  const auto last = last_of_thread();
  if (last != running_.end() && last->frame.is(frame_of_call())) return;
  before(module, args);
}

nb::object Unit::after(const nb::object& /*module*/, const nb::object& /*args*/,
                       const nb::object& output) {
  const auto last = last_of_thread();
  if (last == running_.end()) return nb::none();
  Running running = std::move(*last);
  running_.erase(last);
  const UncompiledScope scope(set_eval_frame_);
  if (!running.entered) return nb::none();
  auto& leases = nb::cast<Leases&>(leases_);
  // Torch calls it with None, too, where the forward failed, while it handles the error.
  const bool has_returned = !output.is_none() || handled_exception() == running.handled;
  nb::object result = nb::none();
  std::exception_ptr error;
  attempt(error, [&] { result = leases.give_back_all(running.held, output, has_returned); });
  attempt(error, [&] { leases.leave(running.frame, output); });
  if (error) std::rethrow_exception(error);
  return result.is(output) ? nb::none() : result;
}

const PyObject* Unit::handled_exception() {
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* traceback = nullptr;
  PyErr_GetExcInfo(&type, &value, &traceback);
  for (PyObject* each : {type, value, traceback}) Py_XDECREF(each);
  return value == Py_None ? nullptr : value;
}

std::vector<Unit::Running>::iterator Unit::last_of_thread() {
  const std::uint64_t thread = PyThread_get_thread_ident();
  const auto last = std::ranges::find(running_.rbegin(), running_.rend(), thread, &Running::thread);
  return last == running_.rend() ? running_.end() : std::prev(last.base());
}

// The frame that runs a module's hooks: the nearest one of torch's own code for modules, or the
// outermost.
nb::object Unit::frame_of_call() const {
  nb::object frame = nb::borrow(reinterpret_cast<PyObject*>(PyEval_GetFrame()));
  for (;;) {
    auto* const raw = reinterpret_cast<PyFrameObject*>(frame.ptr());
    const nb::object code = nb::steal(reinterpret_cast<PyObject*>(PyFrame_GetCode(raw)));
    PyObject* const file = reinterpret_cast<PyCodeObject*>(code.ptr())->co_filename;
    if (file == module_code_.ptr() || PyUnicode_Compare(file, module_code_.ptr()) == 0)
      return frame;
    auto* const caller = reinterpret_cast<PyObject*>(PyFrame_GetBack(raw));
    if (caller == nullptr) return frame;
    frame = nb::steal(caller);
  }
}

void init_leases(nb::module_& module) {
  nb::class_<LeaseFunctions>(module, "LeaseFunctions")
      .def(nb::init<>())
      .def_rw("stream", &LeaseFunctions::stream)
      .def_rw("prepare", &LeaseFunctions::prepare, nb::arg().none())
      .def_rw("settle", &LeaseFunctions::settle, nb::arg().none())
      .def_rw("loans", &LeaseFunctions::loans)
      .def_rw("autocasts", &LeaseFunctions::autocasts)
      .def_rw("clear_casts", &LeaseFunctions::clear_casts)
      .def_rw("held_back", &LeaseFunctions::held_back);
  nb::class_<Leases>(module, "Leases", nb::type_slots(Collected<Leases>::slots.data()))
      .def(nb::init<nb::object, nb::object, nb::object, nb::object, const LeaseFunctions&>(),
           "owner"_a, "engine"_a, "session"_a, "saved"_a, "functions"_a)
      .def("abandon", &Leases::abandon, "groups"_a,
           "Parks groups that an abandoned forward had lent, gives back all leases, and keeps what "
           "it wrote.")
      .def("renew", &Leases::renew, "session"_a, "Takes another session, in a forked child.")
      .def("let_go", &Leases::let_go, "Lets the engine go; nothing is leased any more.")
      .def_prop_ro("last_stream", &Leases::last_stream, "The stream of the last lease, or None.");
  nb::class_<Unit>(module, "Unit", nb::type_slots(Collected<Unit>::slots.data()))
      .def(nb::init<nb::object, nb::list, nb::str, nb::object, nb::object>(), "leases"_a,
           "groups"_a, "module_code"_a, "refuse_tracing"_a, "set_eval_frame"_a)
      .def_rw("groups", &Unit::groups)
      .def_rw("attached", &Unit::attached, "False once its hooks are taken off.")
      .def("before", &Unit::before, "module"_a, "args"_a, "The pre-hook: leases the groups.")
      .def("begin", &Unit::begin, "module"_a, "args"_a,
           "The same for a call that may not have seen the pre-hook; once for each.")
      .def("after", &Unit::after, "module"_a, "args"_a, "output"_a.none(),
           "The post-hook: gives them back; the output without views of their places, or None.")
      .def("forget", &Unit::forget, "Drops what an abandoned forward left.");
}

}  // namespace tensorstream

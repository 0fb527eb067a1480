#include "stacks.h"

#include <algorithm>
#include <utility>

namespace tensorstream {
namespace {

using namespace nb::literals;

nb::object caller_of(const nb::object& frame) {
  PyFrameObject* const caller = PyFrame_GetBack(reinterpret_cast<PyFrameObject*>(frame.ptr()));
  if (caller == nullptr) return nb::none();
  return nb::steal<nb::object>(reinterpret_cast<PyObject*>(caller));
}

nb::object code_of(const nb::object& frame) {
  return nb::steal<nb::object>(
      reinterpret_cast<PyObject*>(PyFrame_GetCode(reinterpret_cast<PyFrameObject*>(frame.ptr()))));
}

/// By thread, the frame that it is in. Within an Uncollected.
nb::dict current_frames() {
  return nb::cast<nb::dict>(nb::module_::import_("sys").attr("_current_frames")());
}

/// What is looked for on stacks.
struct Wanted {
  nb::tuple names;
  nb::str file;
  nb::object marked;
};

/// The innermost first: `self` of each call of a function of that file and one of those names, and
/// the marked code where it runs.
nb::list calls_from(nb::object frame, const Wanted& wanted) {
  nb::list calls;
  for (; !frame.is_none(); frame = caller_of(frame)) {
    const nb::object code = code_of(frame);
    if (code.is(wanted.marked)) {
      calls.append(code);
    } else if (nb::cast<bool>(wanted.names.attr("__contains__")(code.attr("co_name"))) &&
               code.attr("co_filename").equal(wanted.file)) {
      calls.append(frame.attr("f_locals").attr("get")("self"));
    }
  }
  return calls;
}

nb::list calls_of_threads(nb::tuple names, nb::str file, nb::object marked) {
  const Wanted wanted{std::move(names), std::move(file), std::move(marked)};
  const Uncollected uncollected;
  nb::list result;
  for (const auto& [thread, frame] : current_frames()) {
    result.append(nb::make_tuple(thread, calls_from(nb::borrow(frame), wanted)));
  }
  return result;
}

}  // namespace

bool is_on_stack_of(std::uint64_t thread, std::span<const nb::object> frames) {
  const Uncollected uncollected;
  return is_on_stack(current_frames().attr("get")(thread), frames);
}

bool is_on_stack(nb::object frame, std::span<const nb::object> frames) {
  for (; !frame.is_none(); frame = caller_of(frame)) {
    const auto is_it = [&](const nb::object& other) { return frame.is(other); };
    if (std::ranges::any_of(frames, is_it)) return true;
  }
  return false;
}

void init_stacks(nb::module_& module) {
  module.def("calls_of_threads", &calls_of_threads, "names"_a, "file"_a, "marked"_a,
             "Of each thread that runs Python its number, and the innermost first `self` of each "
             "call of a function of that file and one of those names, and the code `marked` where "
             "it runs.");
}

}  // namespace tensorstream

// Sizes, names, and what the operating system says.
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <csignal>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/nearest_name.h"
#include "base/units.h"
#include "bindings.h"
#include "io/reader.h"
#include "platform/process_memory.h"

namespace tensorstream {

using namespace nb::literals;

namespace {

bool restarts_calls(int signal) {
  struct sigaction action = {};
  return ::sigaction(signal, nullptr, &action) == 0 && (action.sa_flags & SA_RESTART) != 0;
}

}  // namespace

void init_system(nb::module_& module) {
  module.def("restarts_calls", &restarts_calls, "signal"_a,
             "Whether the system goes on with a call after a handler of that signal.");
  module.def("parse_size", &parse_size, "text"_a, "option"_a, "whole_bytes"_a,
             "Bytes of a size given as text; `whole_bytes` is what a percentage is of.");
  module.def("format_size", &format_size, "size_bytes"_a, "A size as text for people.");
  module.def(
      "did_you_mean",
      [](const std::string& name, const std::vector<std::string>& known) {
        return did_you_mean(name, known);
      },
      "name"_a, "known"_a,
      "' (did you mean ...?)' with the nearest of some names, or an empty text.");

  nb::class_<FileBacking>(module, "FileBacking")
      .def_ro("path", &FileBacking::path)
      .def_ro("offset_bytes", &FileBacking::offset_bytes)
      .def(
          "is_read_by",
          [](const FileBacking& self, const Reader& reader) {
            return reader.identity() != nullptr && reader.identity()->is_as(self.file);
          },
          "reader"_a, "Whether a reader reads that file, in the state in which it was found.");
  module.def(
      "find_file_backing",
      [](std::uintptr_t address, std::uint64_t size_bytes) {
        return find_file_backing(at_address<const void>(address), size_bytes);
      },
      "address"_a, "size_bytes"_a, Unlocked(),
      "The file whose unmodified bytes lie at an address, or None.");

  nb::class_<ResidentSize>(module, "ResidentSize")
      .def_ro("now_bytes", &ResidentSize::now_bytes)
      .def_ro("peak_bytes", &ResidentSize::peak_bytes);
  module.def("resident_size", &resident_size,
             "Resident bytes of this process now and at its peak, or None.");
  module.def("usable_ram_bytes", &usable_ram_bytes,
             "RAM of the machine, or of the cgroup where that is less.");
  module.def("available_ram_bytes", &available_ram_bytes, "RAM that is free for this process now.");

  nb::enum_<LogLevel>(module, "LogLevel", nb::is_arithmetic())
      .value("DEBUG", LogLevel::kDebug)
      .value("INFO", LogLevel::kInfo)
      .value("WARNING", LogLevel::kWarning)
      .value("ERROR", LogLevel::kError);
  module.def(
      "set_log_sink",
      [](const nb::callable& sink) {
        // The process keeps the sink: threads of the engine may log until the interpreter is gone.
        auto* const kept = new nb::object(sink);  // NOLINT(cppcoreguidelines-owning-memory)
        set_log_sink([kept](LogLevel level, std::string_view message) {
          if (!nb::is_alive()) return;
          const nb::gil_scoped_acquire gil;
          (*kept)(level, std::string(message));
        });
      },
      "sink"_a, "Hands the engine's messages to sink(level, message).");
  module.def("drop_log_sink", [] { set_log_sink({}); }, "Drops the engine's messages from now on.");
}

}  // namespace tensorstream

// The extension module tensorstream._native.
#include "bindings.h"

NB_MODULE(_native, module) {
  module.doc() = "TensorStream's engine.";
  module.attr("version") = TENSORSTREAM_VERSION;
  // Models that live until the process ends are no leak; tests that end theirs turn this on.
  nanobind::set_leak_warnings(false);
  module.def("set_leak_warnings", &nanobind::set_leak_warnings, nanobind::arg("on"),
             "Whether objects alive at the interpreter's end are reported.");
  tensorstream::init_errors(module);
  tensorstream::init_system(module);
  tensorstream::init_store(module);
  tensorstream::init_planning(module);
  tensorstream::init_engine(module);
  tensorstream::init_codec(module);
  tensorstream::init_pack(module);
  tensorstream::init_uncompiled(module);
  tensorstream::init_session(module);
  tensorstream::init_stacks(module);
  tensorstream::init_saved_stack(module);
  tensorstream::init_lent_parameters(module);
  tensorstream::init_leases(module);
}

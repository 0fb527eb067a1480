// What the parts of the extension share.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace tensorstream {

namespace nb = nanobind;

/// Memory that Python gives by address: `data_ptr()` of a tensor or the like. The caller keeps it
/// alive.
template <typename Byte = std::byte>
Byte* at_address(std::uintptr_t address) {
  return reinterpret_cast<Byte*>(address);  // NOLINT(performance-no-int-to-ptr)
}

/// Around a bound function that touches nothing of Python's: it runs without the GIL.
using Unlocked = nb::call_guard<nb::gil_scoped_release>;

/// What `call` gives, which runs without the GIL: what can block, or takes a lock of the engine's.
template <typename Call>
decltype(auto) unlocked(Call&& call) {
  const nb::gil_scoped_release released;
  return std::forward<Call>(call)();
}

void init_errors(nb::module_& module);
void init_system(nb::module_& module);
void init_store(nb::module_& module);
void init_planning(nb::module_& module);
void init_engine(nb::module_& module);
void init_codec(nb::module_& module);
void init_pack(nb::module_& module);
void init_uncompiled(nb::module_& module);
void init_session(nb::module_& module);
void init_stacks(nb::module_& module);
void init_saved_stack(nb::module_& module);
void init_lent_parameters(nb::module_& module);
void init_leases(nb::module_& module);

}  // namespace tensorstream

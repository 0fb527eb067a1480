// The library's errors as the exceptions of tensorstream.exceptions.
#include <nanobind/stl/string.h>

#include <exception>

#include "bindings.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

nb::object make_exception(const char* type_name, const Error& error) {
  return nb::module_::import_("tensorstream.exceptions").attr(type_name)(error.what());
}

void raise(const nb::object& exception) {
  PyErr_SetObject(exception.type().ptr(), exception.ptr());
}

void translate(const std::exception_ptr& raised, void* /*payload*/) {
  try {
    std::rethrow_exception(raised);
  } catch (const IoError& error) {
    nb::object exception = make_exception("IoError", error);
    exception.attr("errno") = error.error_number();
    exception.attr("filename") = error.path();
    exception.attr("offset_bytes") = error.offset_bytes();
    raise(exception);
  } catch (const FormatError& error) {
    nb::object exception = make_exception("FormatError", error);
    exception.attr("path") = error.path();
    exception.attr("tensor") = error.tensor();
    exception.attr("rule") = error.rule();
    raise(exception);
  } catch (const BudgetError& error) {
    nb::object exception = make_exception("BudgetError", error);
    exception.attr("needed_bytes") = error.needed_bytes();
    exception.attr("budget_bytes") = error.budget_bytes();
    raise(exception);
  } catch (const CudaError& error) {
    nb::object exception = make_exception("CudaError", error);
    exception.attr("call") = error.call();
    exception.attr("result") = error.result();
    raise(exception);
  } catch (const CufileError& error) {
    nb::object exception = make_exception("CufileError", error);
    exception.attr("filename") = error.read().path;
    exception.attr("offset_bytes") = error.read().offset_bytes;
    exception.attr("size_bytes") = error.read().size_bytes;
    exception.attr("result") = error.read().result;
    raise(exception);
  } catch (const ConfigError& error) {
    raise(make_exception("ConfigError", error));
  } catch (const UnsupportedError& error) {
    raise(make_exception("UnsupportedError", error));
  } catch (const LeaseError& error) {
    raise(make_exception("LeaseError", error));
  } catch (const Error& error) {
    raise(make_exception("TensorStreamError", error));
  }
}

/// Puts `exception` in the place of the one that the caller's `except` block handles now: a bare
/// `raise` at its end raises it.
void replace_handled(const nb::object& exception) {
  PyErr_SetExcInfo(exception.type().inc_ref().ptr(), nb::object(exception).release().ptr(),
                   nb::getattr(exception, "__traceback__").release().ptr());
}

}  // namespace

void init_errors(nb::module_& module) {
  nb::register_exception_translator(translate);
  module.def(
      "replace_handled", &replace_handled, nb::arg("exception"),
      "Makes a bare `raise` of the callers raise this exception and not the one they handle.");
}

}  // namespace tensorstream

// The library's errors as the exceptions of tensorstream.exceptions.
#include <nanobind/stl/string.h>

#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <system_error>

#include "bindings.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// Names of files are bytes, and may be no UTF-8: such bytes are shown as \\xff.
nb::object text_of(std::string_view text) {
  return nb::steal(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace"));
}

/// As os.fsdecode() gives it, so that it opens the file.
nb::object path_of(const std::string& path) {
  return nb::steal(
      PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<Py_ssize_t>(path.size())));
}

nb::object make_exception(const char* type_name, const Error& error) {
  return nb::module_::import_("tensorstream.exceptions").attr(type_name)(text_of(error.what()));
}

void raise(const nb::object& exception) {
  PyErr_SetObject(exception.type().ptr(), exception.ptr());
}

/// What a std::thread raises that the system refuses.
UnsupportedError no_thread(const std::system_error& error) {
  return UnsupportedError(std::string("the system gives this process no more threads (") +
                          error.what() +
                          "): raise its limits, `ulimit -u` and `ulimit -v`, and the container's "
                          "of processes (pids)");
}

BudgetError no_memory() {
  return {
      "the system gives this process no more memory: free some, or raise its limits, "
      "`ulimit -v`, and the container's",
      0, 0};
}

void translate(const std::exception_ptr& raised, void* /*payload*/) {
  try {
    std::rethrow_exception(raised);
  } catch (const IoError& error) {
    nb::object exception = make_exception("IoError", error);
    exception.attr("errno") = error.error_number();
    exception.attr("filename") = path_of(error.path());
    exception.attr("offset_bytes") = error.offset_bytes();
    raise(exception);
  } catch (const FormatError& error) {
    nb::object exception = make_exception("FormatError", error);
    exception.attr("path") = path_of(error.path());
    exception.attr("tensor") = text_of(error.tensor());
    exception.attr("rule") = text_of(error.rule());
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
    exception.attr("filename") = path_of(error.read().path);
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
  } catch (const std::bad_alloc&) {
    raise(make_exception("BudgetError", no_memory()));
  } catch (const std::system_error& error) {
    if (error.code() != std::errc::resource_unavailable_try_again) throw;
    raise(make_exception("UnsupportedError", no_thread(error)));
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

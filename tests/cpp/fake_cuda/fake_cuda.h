// The fake driver's controls, for tests: what it is to do, and what it holds.
#pragma once

#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "fake_cuda/fake_paths.h"
#include "platform/cuda_driver.h"
#include "platform/cufile.h"
#include "platform/nvrtc.h"

namespace tensorstream {

/// The fake driver of this process. It is one for all tests: each starts with reset().
class FakeCuda {
 public:
  FakeCuda() : library_(dlopen(kFakeCuda, RTLD_NOW | RTLD_LOCAL)) {
    if (library_ == nullptr) throw std::runtime_error(dlerror());
  }

  static std::string path() { return kFakeCuda; }
  /// A driver that lacks all but its version.
  static std::string incomplete_path() { return kIncompleteCuda; }

  /// A compiler whose kernels this driver runs.
  static NvrtcPlaces compiler() { return {kFakeNvrtc, {}}; }

  /// A cuFile that reads into this driver's memory; it looks for nvidia-fs at `nvidia_fs`.
  static CufilePlaces cufile(const std::string& nvidia_fs = "/nowhere") {
    return {{kFakeCuda, {}}, nvidia_fs};
  }

  /// As at the start: default settings, no failures, nothing held or counted.
  void reset() const { find<void()>("fake_cuda_reset")(); }
  /// The settings, with their defaults, are in fake_state.h.
  void set(const char* setting, long long value) const {
    find<void(const char*, long long)>("fake_cuda_set")(setting, value);
  }
  /// How much it holds now of "streams", "events", "allocations", "modules", "registrations",
  /// "contexts", and of "files" that are registered with cuFile; how much of those was "leaked",
  /// still there when its context went; the calling thread's "context_depth", and its
  /// "current_device" (-1 for none); "held_calls", which wait because of a setting; and "calls", of
  /// all functions since reset().
  long long get(const char* name) const {
    return find<long long(const char*)>("fake_cuda_get")(name);
  }
  /// The `nth` call from now of `function`, counted from 1, does nothing but return `result`; one
  /// of cuFileRead fails with it, an errno or a result of cuFile's.
  void fail(const char* function, int nth, CudaResult result) const {
    fail(function, nth, static_cast<int>(result));
  }
  void fail(const char* function, int nth, int result) const {
    find<void(const char*, int, int)>("fake_cuda_fail")(function, nth, result);
  }
  /// Calls of `function` since reset(), and of "host functions" those that are done.
  long long calls(const char* function) const {
    return find<long long(const char*)>("fake_cuda_calls")(function);
  }
  long long held() const {
    return get("streams") + get("events") + get("allocations") + get("modules") +
           get("registrations") + get("contexts") + get("files");
  }

 private:
  template <typename Function>
  Function* find(const char* name) const {
    return reinterpret_cast<Function*>(dlsym(library_, name));
  }

  void* library_;  // never closed, as the product does not close it either
};

}  // namespace tensorstream

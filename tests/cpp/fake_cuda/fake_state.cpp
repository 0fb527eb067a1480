#include "fake_cuda/fake_state.h"

#include <pthread.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <new>
#include <thread>
#include <utility>

namespace tensorstream {

CudaContextState::~CudaContextState() {
  all_streams.clear();  // the threads, which use the rest
  for (const auto& [address, allocation] : allocations) std::free(allocation.memory);
}

namespace fake_cuda {
namespace {

/// A number of the calling thread that no other gets.
unsigned long long thread_number() {
  thread_local const unsigned long long kNumber = ++state().ids_given;
  return kNumber;
}

}  // namespace

std::map<std::string, long long> default_settings() {
  return {{"devices", 1},
          {"driver_version", 12040},
          {"init_result", 0},
          {"total_bytes", 1LL << 30},
          {"most_registered_bytes", 1LL << 40},
          {"registration_refusal", static_cast<long long>(CudaResult::kOutOfMemory)},
          {"host_register_supported", 1},
          {"source_register_supported", 1},
          {"compute_capability_major", 9},
          {"compute_capability_minor", 0},
          {"serial_host_functions", 1},
          {"pageable_copies_wait", 1},
          {"hold_calls", 0},
          {"hold_copies", 0},
          {"hold_launches", 0},
          {"late_host_functions", 0},
          {"capturing", 0},
          {"captured_globally", 0},
          {"cufile_nvidia_fs_version", 0},
          {"cufile_control_flags", kCufileCompatibilityMode},
          {"cufile_feature_flags", 0},
          {"cufile_largest_cache_kib", 0},
          {"cufile_longest_read", 1LL << 40},
          {"lost", 0}};
}

State& state() {
  // Never destroyed: threads of streams that leaked may use it while the process ends.
  static State* const instance = [] {
    auto* const made = new State;
    made->settings = default_settings();
    // A forked child can ask what was called: no thread that is not there has the mutex.
    const auto lock = [] { state().mutex.lock(); };
    const auto unlock = [] { state().mutex.unlock(); };
    if (pthread_atfork(lock, unlock, unlock) != 0) throw std::bad_alloc();
    return made;
  }();
  return *instance;
}

std::vector<CudaContextHandle>& context_stack() {
  thread_local std::vector<CudaContextHandle> stack;
  return stack;
}

bool& in_host_function() {
  thread_local bool inside = false;
  return inside;
}

namespace {

constexpr int kGlobalMode = 0;

/// What may wait for a stream that is captured.
bool is_unsafe_in_captures(const std::string& function) {
  static const std::set<std::string> kUnsafe = {
      "cuStreamSynchronize", "cuEventSynchronize", "cuEventQuery",
      "cuMemAlloc_v2",       "cuMemFree_v2",       "cuMemHostRegister_v2",
      "cuMemHostUnregister", "cuModuleLoadData",   "cuModuleUnload"};
  return kUnsafe.contains(function);
}

void wait_while(State& all, const std::function<bool()>& held) {
  for (bool counted = false;; counted = true) {
    {
      const std::lock_guard lock(all.mutex);
      if (!held()) {
        if (counted) --all.held_calls;
        return;
      }
      if (!counted) ++all.held_calls;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

// As a driver's lock that another thread's call holds until its stream gets on.
void wait_while_held(State& all, const std::string& function) {
  const bool copies = function == "cuMemcpyHtoDAsync_v2";
  const bool launches = function == "cuLaunchKernel";
  wait_while(all, [&] {
    return all.setting("hold_calls") != 0 || (copies && all.setting("hold_copies") != 0) ||
           (launches && all.setting("hold_launches") != 0);
  });
}

}  // namespace

void wait_while_set(const char* setting) {
  State& all = state();
  wait_while(all, [&] { return all.setting(setting) != 0; });
}

int& capture_mode() {
  thread_local int mode = kGlobalMode;
  return mode;
}

CudaResult enter(const char* function, Needs needs) {
  State& all = state();
  if (!in_host_function()) wait_while_held(all, function);
  const std::lock_guard lock(all.mutex);
  ++all.calls[function];
  if (const auto found = all.failures.find(function); found != all.failures.end()) {
    if (--found->second.calls_left == 0) {
      const auto result = static_cast<CudaResult>(found->second.result);
      all.failures.erase(found);
      return result;
    }
  }
  if (needs == Needs::kNothing) return CudaResult::kSuccess;
  if (in_host_function()) return CudaResult::kNotPermitted;
  if (!all.initialised) return CudaResult::kNotInitialized;
  if (all.setting("lost") != 0) return static_cast<CudaResult>(all.setting("lost"));
  if (needs == Needs::kContext && context_stack().empty()) return CudaResult::kInvalidContext;
  const bool captured = all.setting("captured_globally") != 0;
  if (captured && capture_mode() != kCudaCaptureModeRelaxed && is_unsafe_in_captures(function)) {
    return CudaResult::kStreamCaptureUnsupported;
  }
  return CudaResult::kSuccess;
}

CudaStreamHandle add_stream(CudaContextState& context) {
  context.all_streams.push_back(std::make_unique<CudaStreamState>(++state().ids_given));
  return context.all_streams.back().get();
}

CudaStreamState* find_stream(CudaStreamHandle handle) {
  CudaContextState& current = *context_stack().back();
  const auto value = reinterpret_cast<std::uintptr_t>(handle);
  if (value == 0 || value == kCudaLegacyStream) {
    if (current.legacy == nullptr) current.legacy = add_stream(current);
    return current.legacy;
  }
  if (value == kCudaPerThreadStream) {
    CudaStreamHandle& own = current.by_thread[thread_number()];
    if (own == nullptr) own = add_stream(current);
    return own;
  }
  for (const auto& [device, context] : state().contexts) {
    if (context->streams.contains(handle)) return handle;
  }
  return nullptr;
}

CudaEventState* find_event(CudaEventHandle handle) {
  for (const auto& [device, context] : state().contexts) {
    if (context->events.contains(handle)) return handle;
  }
  return nullptr;
}

}  // namespace fake_cuda
}  // namespace tensorstream

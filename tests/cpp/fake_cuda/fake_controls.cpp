// How tests reach into the fake driver; fake_cuda.h calls these.
#include <string>
#include <utility>

#include "fake_cuda/fake_state.h"

using namespace tensorstream;
using namespace tensorstream::fake_cuda;

namespace {

/// With the mutex held.
long long held_in_contexts(const std::string& name) {
  std::size_t held = 0;
  for (const auto& [device, context] : state().contexts) {
    if (name == "streams") held += context->streams.size();
    if (name == "events") held += context->events.size();
    if (name == "modules") held += context->modules.size();
    if (name == "allocations") held += context->allocations.size();
  }
  return static_cast<long long>(held);
}

}  // namespace

TS_FAKE_EXPORT void fake_cuda_set(const char* setting, long long value) {
  const std::lock_guard lock(state().mutex);
  state().settings.at(setting) = value;
}

TS_FAKE_EXPORT long long fake_cuda_get(const char* name) {
  const std::string wanted = name;
  const std::lock_guard lock(state().mutex);
  if (wanted == "contexts") return static_cast<long long>(state().contexts.size());
  if (wanted == "registrations") return static_cast<long long>(state().registrations.size());
  if (wanted == "files") return static_cast<long long>(state().files.size());
  if (wanted == "leaked") return state().leaked;
  if (wanted == "calls") {
    long long sum = 0;
    for (const auto& [function, count] : state().calls) sum += count;
    return sum;
  }
  if (wanted == "held_calls") return state().held_calls;
  if (wanted == "context_depth") return static_cast<long long>(context_stack().size());
  if (wanted == "current_device") {
    return context_stack().empty() ? -1 : context_stack().back()->device;
  }
  return held_in_contexts(wanted);
}

TS_FAKE_EXPORT void fake_cuda_fail(const char* function, int nth, int result) {
  const std::lock_guard lock(state().mutex);
  state().failures[function] = {nth, result};
}

TS_FAKE_EXPORT long long fake_cuda_calls(const char* function) {
  const std::lock_guard lock(state().mutex);
  return state().calls[function];
}

TS_FAKE_EXPORT void fake_cuda_reset() {
  std::map<CudaOrdinal, std::unique_ptr<CudaContextState>> ended;  // outside the mutex
  const std::lock_guard lock(state().mutex);
  State& all = state();
  ended.swap(all.contexts);
  all.settings = default_settings();
  all.failures.clear();
  all.calls.clear();
  all.registrations.clear();
  all.used_bytes = 0;
  all.leaked = 0;
  all.initialised = false;
  context_stack().clear();
}

// The fake driver's functions of devices and contexts.
#include <cstdio>
#include <memory>
#include <utility>

#include "fake_cuda/fake_state.h"

using namespace tensorstream;
using namespace tensorstream::fake_cuda;

namespace {

/// With the mutex held.
bool is_device(CudaOrdinal device) { return device >= 0 && device < state().setting("devices"); }

const char* name_of(CudaResult result) {
  switch (result) {
#define TS_NAME_OF(ours, theirs, value) \
  case CudaResult::ours:                \
    return #theirs;
    TS_CUDA_RESULTS(TS_NAME_OF)
#undef TS_NAME_OF
  }
  return nullptr;
}

/// The setting that is the value of a device's attribute; null where there is none.
const char* setting_of(int attribute) {
  switch (attribute) {
    case kCudaAttributeHostRegisterSupported:
      return "host_register_supported";
    case kCudaAttributeReadOnlyHostRegisterSupported:
      return "source_register_supported";
    case kCudaAttributeComputeCapabilityMajor:
      return "compute_capability_major";
    case kCudaAttributeComputeCapabilityMinor:
      return "compute_capability_minor";
    default:
      return nullptr;
  }
}

/// Takes a context that nobody retains out of the state; what it still held has leaked.
std::unique_ptr<CudaContextState> take_out(CudaContextState& context) {
  State& all = state();
  all.leaked += static_cast<long long>(context.streams.size() + context.events.size() +
                                       context.allocations.size() + context.modules.size());
  for (const auto& [address, allocation] : context.allocations) {
    all.used_bytes -= allocation.size_bytes;
  }
  const auto found = all.contexts.find(context.device);
  std::unique_ptr<CudaContextState> taken = std::move(found->second);
  all.contexts.erase(found);
  if (all.contexts.empty()) {
    all.leaked += static_cast<long long>(all.registrations.size());
    all.registrations.clear();
  }
  return taken;
}

}  // namespace

TS_FAKE_EXPORT CudaResult cuDriverGetVersion(int* version) {
  const CudaResult early = enter("cuDriverGetVersion", Needs::kNothing);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  *version = static_cast<int>(state().setting("driver_version"));
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuInit(unsigned int flags) {
  const CudaResult early = enter("cuInit", Needs::kNothing);
  if (early != CudaResult::kSuccess) return early;
  if (flags != 0) return CudaResult::kInvalidValue;
  const std::lock_guard lock(state().mutex);
  const auto result = static_cast<CudaResult>(state().setting("init_result"));
  state().initialised = result == CudaResult::kSuccess;
  return result;
}

TS_FAKE_EXPORT CudaResult cuGetErrorName(CudaResult result, const char** text) {
  *text = name_of(result);
  return *text == nullptr ? CudaResult::kInvalidValue : CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuGetErrorString(CudaResult result, const char** text) {
  *text = name_of(result) == nullptr ? nullptr : "the fake driver says so";
  return *text == nullptr ? CudaResult::kInvalidValue : CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuDeviceGetCount(int* count) {
  const CudaResult early = enter("cuDeviceGetCount", Needs::kDriver);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  *count = static_cast<int>(state().setting("devices"));
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuDeviceGet(CudaOrdinal* device, int index) {
  const CudaResult early = enter("cuDeviceGet", Needs::kDriver);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  if (!is_device(index)) return CudaResult::kInvalidDevice;
  *device = index;
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuDeviceGetName(char* name, int size, CudaOrdinal device) {
  const CudaResult early = enter("cuDeviceGetName", Needs::kDriver);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  if (!is_device(device)) return CudaResult::kInvalidDevice;
  std::snprintf(name, static_cast<std::size_t>(size), "Fake GPU %d", device);
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuDeviceGetPCIBusId(char* id, int size, CudaOrdinal device) {
  const CudaResult early = enter("cuDeviceGetPCIBusId", Needs::kDriver);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  if (!is_device(device)) return CudaResult::kInvalidDevice;
  std::snprintf(id, static_cast<std::size_t>(size), "0000:%02x:00.0", device);
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuDeviceGetAttribute(int* value, int attribute, CudaOrdinal device) {
  const CudaResult early = enter("cuDeviceGetAttribute", Needs::kDriver);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  if (!is_device(device)) return CudaResult::kInvalidDevice;
  const char* const name = setting_of(attribute);
  if (name == nullptr) return CudaResult::kInvalidValue;
  *value = static_cast<int>(state().setting(name));
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuDeviceTotalMem_v2(std::size_t* size_bytes, CudaOrdinal device) {
  const CudaResult early = enter("cuDeviceTotalMem_v2", Needs::kDriver);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  if (!is_device(device)) return CudaResult::kInvalidDevice;
  *size_bytes = static_cast<std::size_t>(state().setting("total_bytes"));
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuDevicePrimaryCtxRetain(CudaContextHandle* context, CudaOrdinal device) {
  const CudaResult early = enter("cuDevicePrimaryCtxRetain", Needs::kDriver);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  if (!is_device(device)) return CudaResult::kInvalidDevice;
  auto& primary = state().contexts[device];
  if (primary == nullptr) primary = std::make_unique<CudaContextState>();
  primary->device = device;
  ++primary->retained;
  *context = primary.get();
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuDevicePrimaryCtxRelease_v2(CudaOrdinal device) {
  const CudaResult early = enter("cuDevicePrimaryCtxRelease_v2", Needs::kDriver);
  if (early != CudaResult::kSuccess) return early;
  std::unique_ptr<CudaContextState> ended;  // outside the mutex: its threads may want it
  const std::lock_guard lock(state().mutex);
  const auto found = state().contexts.find(device);
  if (found == state().contexts.end()) return CudaResult::kInvalidContext;
  if (--found->second->retained == 0) ended = take_out(*found->second);
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuCtxPushCurrent_v2(CudaContextHandle context) {
  const CudaResult early = enter("cuCtxPushCurrent_v2", Needs::kDriver);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  for (const auto& [device, known] : state().contexts) {
    if (known.get() != context) continue;
    context_stack().push_back(context);
    return CudaResult::kSuccess;
  }
  return CudaResult::kInvalidContext;
}

TS_FAKE_EXPORT CudaResult cuCtxPopCurrent_v2(CudaContextHandle* context) {
  const CudaResult early = enter("cuCtxPopCurrent_v2", Needs::kDriver);
  if (early != CudaResult::kSuccess) return early;
  if (context_stack().empty()) return CudaResult::kInvalidContext;
  *context = context_stack().back();
  context_stack().pop_back();
  return CudaResult::kSuccess;
}

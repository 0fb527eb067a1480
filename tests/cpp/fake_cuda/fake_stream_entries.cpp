// The fake driver's functions of streams and events.
#include <memory>
#include <mutex>
#include <utility>

#include "fake_cuda/fake_state.h"

using namespace tensorstream;
using namespace tensorstream::fake_cuda;

namespace {

enum class HostFunctions { kSerial, kParallel };

void call(CudaHostFunction function, void* data, HostFunctions kind) {
  static std::mutex one_at_a_time;
  std::unique_lock<std::mutex> lock;
  if (kind == HostFunctions::kSerial) lock = std::unique_lock(one_at_a_time);
  in_host_function() = true;
  function(data);
  in_host_function() = false;
  const std::lock_guard counted(state().mutex);
  ++state().calls["host functions"];
}

}  // namespace

TS_FAKE_EXPORT CudaResult cuStreamCreateWithPriority(CudaStreamHandle* stream, unsigned int flags,
                                                     int priority) {
  const CudaResult early = enter("cuStreamCreateWithPriority", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  if (flags != kCudaStreamNonBlocking || priority > 0) return CudaResult::kInvalidValue;
  const std::lock_guard lock(state().mutex);
  CudaContextState& context = *context_stack().back();
  *stream = add_stream(context);
  context.streams.insert(*stream);
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuStreamDestroy_v2(CudaStreamHandle stream) {
  const CudaResult early = enter("cuStreamDestroy_v2", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  for (const auto& [device, context] : state().contexts) {
    if (context->streams.erase(stream) == 0) continue;
    stream->queue.close();  // its work goes on
    return CudaResult::kSuccess;
  }
  return CudaResult::kInvalidHandle;
}

TS_FAKE_EXPORT CudaResult cuStreamGetId(CudaStreamHandle stream, unsigned long long* id) {
  const CudaResult early = enter("cuStreamGetId", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  const CudaStreamState* const found = find_stream(stream);
  if (found == nullptr) return CudaResult::kInvalidHandle;
  *id = found->id;
  return CudaResult::kSuccess;
}

// Setting "capturing": 1 where every stream is captured, 2 where another stream is, globally.
TS_FAKE_EXPORT CudaResult cuStreamIsCapturing(CudaStreamHandle stream, int* status) {
  const CudaResult early = enter("cuStreamIsCapturing", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  if (find_stream(stream) == nullptr) return CudaResult::kInvalidHandle;
  const long long capturing = state().setting("capturing");
  if (capturing == 2) return CudaResult::kStreamCaptureImplicit;
  *status = capturing == 1 ? 1 : kCudaCaptureNone;
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuThreadExchangeStreamCaptureMode(int* mode) {
  const CudaResult early = enter("cuThreadExchangeStreamCaptureMode", Needs::kDriver);
  if (early != CudaResult::kSuccess) return early;
  std::swap(*mode, capture_mode());
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuStreamSynchronize(CudaStreamHandle stream) {
  const CudaResult early = enter("cuStreamSynchronize", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  std::shared_ptr<Completion> done;
  {
    const std::lock_guard lock(state().mutex);
    CudaStreamState* const found = find_stream(stream);
    if (found == nullptr) return CudaResult::kInvalidHandle;
    done = found->queue.mark();
  }
  done->wait();
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuStreamWaitEvent(CudaStreamHandle stream, CudaEventHandle event,
                                            unsigned int flags) {
  const CudaResult early = enter("cuStreamWaitEvent", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  if (flags != 0) return CudaResult::kInvalidValue;
  const std::lock_guard lock(state().mutex);
  CudaStreamState* const found = find_stream(stream);
  const CudaEventState* const awaited = find_event(event);
  if (found == nullptr || awaited == nullptr) return CudaResult::kInvalidHandle;
  if (awaited->last != nullptr) found->queue.submit([last = awaited->last] { last->wait(); });
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuLaunchHostFunc(CudaStreamHandle stream, CudaHostFunction function,
                                           void* data) {
  const CudaResult early = enter("cuLaunchHostFunc", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  {
    const std::lock_guard lock(state().mutex);
    CudaStreamState* const found = find_stream(stream);
    if (found == nullptr) return CudaResult::kInvalidHandle;
    const HostFunctions kind = state().setting("serial_host_functions") != 0
                                   ? HostFunctions::kSerial
                                   : HostFunctions::kParallel;
    found->queue.submit([=] { call(function, data, kind); });
  }
  wait_while_set("late_host_functions");
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuEventCreate(CudaEventHandle* event, unsigned int flags) {
  const CudaResult early = enter("cuEventCreate", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  if (flags != kCudaEventDisableTiming) return CudaResult::kInvalidValue;
  const std::lock_guard lock(state().mutex);
  auto made = std::make_unique<CudaEventState>();
  *event = made.get();
  context_stack().back()->events[*event] = std::move(made);
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuEventDestroy_v2(CudaEventHandle event) {
  const CudaResult early = enter("cuEventDestroy_v2", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  for (const auto& [device, context] : state().contexts) {
    if (context->events.erase(event) != 0) return CudaResult::kSuccess;
  }
  return CudaResult::kInvalidHandle;
}

TS_FAKE_EXPORT CudaResult cuEventRecord(CudaEventHandle event, CudaStreamHandle stream) {
  const CudaResult early = enter("cuEventRecord", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  CudaStreamState* const found = find_stream(stream);
  CudaEventState* const recorded = find_event(event);
  if (found == nullptr || recorded == nullptr) return CudaResult::kInvalidHandle;
  recorded->last = found->queue.mark();
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuEventQuery(CudaEventHandle event) {
  const CudaResult early = enter("cuEventQuery", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  const CudaEventState* const found = find_event(event);
  if (found == nullptr) return CudaResult::kInvalidHandle;
  return found->last == nullptr || found->last->happened() ? CudaResult::kSuccess
                                                           : CudaResult::kNotReady;
}

TS_FAKE_EXPORT CudaResult cuEventSynchronize(CudaEventHandle event) {
  const CudaResult early = enter("cuEventSynchronize", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  std::shared_ptr<Completion> last;
  {
    const std::lock_guard lock(state().mutex);
    const CudaEventState* const found = find_event(event);
    if (found == nullptr) return CudaResult::kInvalidHandle;
    last = found->last;
  }
  if (last != nullptr) last->wait();
  return CudaResult::kSuccess;
}

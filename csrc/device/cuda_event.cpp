#include "device/cuda_event.h"

#include "tensorstream/error.h"

namespace tensorstream {

CudaEvent::CudaEvent(const CudaContext& context) : context_(context) {
  const CudaContext::Current current(context_);
  context_.check(context_.driver().cuEventCreate(&handle_, kCudaEventDisableTiming),
                 "cuEventCreate");
}

CudaEvent::~CudaEvent() {
  context_.release_in("cuEventDestroy_v2",
                      [this] { return context_.driver().cuEventDestroy_v2(handle_); });
}

bool CudaEvent::complete() const {
  const CudaContext::BesideCaptures current(context_);
  const CudaResult result = context_.driver().cuEventQuery(handle_);
  if (result == CudaResult::kNotReady) return false;
  context_.check(result, "cuEventQuery");
  return true;
}

void CudaEvent::synchronize() const {
  const CudaContext::BesideCaptures current(context_);
  context_.check(context_.driver().cuEventSynchronize(handle_), "cuEventSynchronize");
}

const CudaEvent& CudaEvent::of(const Event& event, const CudaContext& context) {
  const auto* const cuda_event = dynamic_cast<const CudaEvent*>(&event);
  if (cuda_event == nullptr || &cuda_event->context_ != &context) {
    throw ConfigError(context.description() + ": the event was made by another device");
  }
  return *cuda_event;
}

}  // namespace tensorstream

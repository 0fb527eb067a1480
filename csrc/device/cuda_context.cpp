#include "device/cuda_context.h"

#include <array>
#include <exception>

#include "base/log.h"
#include "platform/process_memory.h"

namespace tensorstream {

CudaContext::CudaContext(const CudaDriver& driver, int index)
    : process_(process_id()),
      driver_(driver),
      name_("cuda:" + std::to_string(index)),
      description_("device " + name_) {
  check(driver_.cuDeviceGet(&ordinal_, index), "cuDeviceGet");
  std::array<char, 256> model{};
  std::array<char, 64> place{};
  check(driver_.cuDeviceGetName(model.data(), int{model.size()}, ordinal_), "cuDeviceGetName");
  check(driver_.cuDeviceGetPCIBusId(place.data(), int{place.size()}, ordinal_),
        "cuDeviceGetPCIBusId");
  pci_bus_id_ = place.data();
  // CUDA_VISIBLE_DEVICES renumbers: the place on the bus tells cards apart.
  description_ += std::string(" (") + model.data() + ", " + pci_bus_id_ + ")";
  // Last: the destructor, which releases it, runs for whole objects only.
  check(driver_.cuDevicePrimaryCtxRetain(&handle_, ordinal_), "cuDevicePrimaryCtxRetain");
}

CudaContext::~CudaContext() {
  if (process_ != process_id()) return;  // guard: driver-of-the-parent
  log_failure(driver_.cuDevicePrimaryCtxRelease_v2(ordinal_), "cuDevicePrimaryCtxRelease_v2");
}

void CudaContext::check(CudaResult result, const char* call, std::uint64_t size_bytes,
                        std::source_location where) const {
  if (result == CudaResult::kSuccess) return;
  throw cuda_error(driver_, result, {call, description_, size_bytes}, where);
}

void CudaContext::log_failure(CudaResult result, const char* call) const noexcept {
  if (result == CudaResult::kSuccess) return;
  // The process ends, and the driver has let go of everything already.
  if (result == CudaResult::kDeinitialized) return;
  if (loses_context(result) && said_lost_.exchange(true)) return;
  try {
    log(LogLevel::kError, cuda_error(driver_, result, {call, description_}).what());
  } catch (const std::exception&) {
    log(LogLevel::kError, "a call of the CUDA driver failed, and there is no memory to say which");
  }
}

bool CudaContext::try_push() const noexcept {
  if (process_ != process_id()) return false;  // guard: driver-of-the-parent
  const CudaResult result = driver_.cuCtxPushCurrent_v2(handle_);
  log_failure(result, "cuCtxPushCurrent_v2");
  return result == CudaResult::kSuccess;
}

void CudaContext::pop() const noexcept {
  CudaContextHandle popped = nullptr;
  log_failure(driver_.cuCtxPopCurrent_v2(&popped), "cuCtxPopCurrent_v2");
}

void CudaContext::exchange_mode(int& mode) const noexcept {
  log_failure(driver_.cuThreadExchangeStreamCaptureMode(&mode),
              "cuThreadExchangeStreamCaptureMode");
}

CudaContext::Current::Current(const CudaContext& context, std::source_location where)
    : context_(context) {
  context.check(context.driver_.cuCtxPushCurrent_v2(context.handle_), "cuCtxPushCurrent_v2", 0,
                where);
}

CudaContext::Current::~Current() { context_.pop(); }

CudaContext::BesideCaptures::BesideCaptures(const CudaContext& context, std::source_location where)
    : context_(context), current_(context, where) {
  // guard: beside-captures
  context_.check(context_.driver_.cuThreadExchangeStreamCaptureMode(&mode_),
                 "cuThreadExchangeStreamCaptureMode", 0, where);
  // end guard
}

CudaContext::BesideCaptures::~BesideCaptures() { context_.exchange_mode(mode_); }

}  // namespace tensorstream

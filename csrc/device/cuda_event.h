// CudaDevice's events.
#pragma once

#include "device/cuda_context.h"
#include "device/device.h"

namespace tensorstream {

/// Work that refers to it may outlast it: the driver keeps what it needs. The context outlives it.
/// Thread-safe.
class CudaEvent final : public Event {
 public:
  /// Raises CudaError.
  explicit CudaEvent(const CudaContext& context);
  ~CudaEvent() override;
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  bool complete() const override;
  void synchronize() const override;

  CudaEventHandle handle() const noexcept { return handle_; }

  /// `event` as one that was made in `context`. Raises ConfigError where it was not.
  static const CudaEvent& of(const Event& event, const CudaContext& context);

 private:
  const CudaContext& context_;
  CudaEventHandle handle_ = nullptr;
};

}  // namespace tensorstream

// Kernels: loaded into a GPU's context, and launched in the order of its streams.
#pragma once

#include <cstddef>
#include <span>

#include "device/cuda_context.h"
#include "device/cuda_stream.h"
#include "device/device.h"

namespace tensorstream {

/// Machine code in a context, which outlives it. Nothing of it runs when it goes. Immutable.
class CudaModule {
 public:
  /// Raises CudaError.
  CudaModule(const CudaContext& context, std::span<const std::byte> cubin);
  ~CudaModule();
  CudaModule(const CudaModule&) = delete;
  CudaModule& operator=(const CudaModule&) = delete;

  /// Raises CudaError.
  CudaFunctionHandle function(const char* name) const;

 private:
  const CudaContext& context_;
  CudaModuleHandle handle_ = nullptr;
};

/// A kernel of a module, which outlives it. Immutable.
class CudaKernel {
 public:
  CudaKernel(const CudaContext& context, CudaFunctionHandle function)
      : context_(&context), function_(function) {}

  /// Enqueues the kernel with `arguments`, each a value as wide as the kernel's. Raises CudaError,
  /// and ConfigError where the stream is another device's.
  template <typename... Arguments>
  void launch(Stream& stream, const CudaGrid& grid, Arguments... arguments) const {
    void* addresses[] = {&arguments...};
    CudaStream::of(stream, *context_).launch(function_, grid, addresses);
  }

 private:
  const CudaContext* context_;
  CudaFunctionHandle function_;
};

}  // namespace tensorstream

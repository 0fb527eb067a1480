#include "device/cuda_kernel.h"

namespace tensorstream {

CudaModule::CudaModule(const CudaContext& context, std::span<const std::byte> cubin)
    : context_(context) {
  const CudaContext::BesideCaptures current(context_);
  context_.check(context_.driver().cuModuleLoadData(&handle_, cubin.data()), "cuModuleLoadData");
}

CudaModule::~CudaModule() {
  context_.release_in("cuModuleUnload",
                      [this] { return context_.driver().cuModuleUnload(handle_); });
}

CudaFunctionHandle CudaModule::function(const char* name) const {
  const CudaContext::Current current(context_);
  CudaFunctionHandle found = nullptr;
  context_.check(context_.driver().cuModuleGetFunction(&found, handle_, name),
                 "cuModuleGetFunction");
  // Kernels work in shared memory and read what they read once: blocks side by side are worth more
  // than a cache.
  context_.check(
      context_.driver().cuFuncSetAttribute(found, kCudaFunctionSharedMemoryCarveout, 100),
      "cuFuncSetAttribute");
  return found;
}

}  // namespace tensorstream

// The fake driver's functions of modules and kernels.
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "fake_cuda/fake_cubin.h"
#include "fake_cuda/fake_frame_decode.h"
#include "fake_cuda/fake_state.h"

using namespace tensorstream;
using namespace tensorstream::fake_cuda;

namespace {

/// Launches of ts_decode_frames that touch what they may not: as on a GPU, all later calls fail.
bool is_allowed(const FrameDecodeLaunch& launch) {
  const std::lock_guard lock(state().mutex);
  const bool allowed = touches_only(launch, [](const void* data, std::size_t size_bytes) {
    return is_device_memory(reinterpret_cast<CudaAddress>(data), size_bytes);
  });
  if (!allowed) state().settings["lost"] = static_cast<long long>(CudaResult::kIllegalAddress);
  return allowed;
}

template <typename Value>
Value argument(void** arguments, int index) {
  Value value;
  std::memcpy(&value, arguments[index], sizeof value);
  return value;
}

}  // namespace

TS_FAKE_EXPORT CudaResult cuModuleLoadData(CudaModuleHandle* module, const void* image) {
  const CudaResult early = enter("cuModuleLoadData", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  if (std::memcmp(image, kFakeCubin.data(), kFakeCubin.size()) != 0) {
    return CudaResult::kInvalidImage;
  }
  const std::lock_guard lock(state().mutex);
  auto made = std::make_unique<CudaModuleState>();
  made->source = static_cast<const char*>(image) + kFakeCubin.size();
  *module = made.get();
  context_stack().back()->modules[*module] = std::move(made);
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuModuleUnload(CudaModuleHandle module) {
  const CudaResult early = enter("cuModuleUnload", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  for (const auto& [device, context] : state().contexts) {
    if (context->modules.erase(module) != 0) return CudaResult::kSuccess;
  }
  return CudaResult::kInvalidHandle;
}

TS_FAKE_EXPORT CudaResult cuModuleGetFunction(CudaFunctionHandle* function, CudaModuleHandle module,
                                              const char* name) {
  const CudaResult early = enter("cuModuleGetFunction", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  const auto found = context_stack().back()->modules.find(module);
  if (found == context_stack().back()->modules.end()) return CudaResult::kInvalidHandle;
  const std::string definition = std::string(" ") + name + "(";
  if (found->second->source.find(definition) == std::string::npos) return CudaResult::kNotFound;
  found->second->function.name = name;
  *function = &found->second->function;
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuFuncSetAttribute(CudaFunctionHandle function, int attribute,
                                             int value) {
  const CudaResult early = enter("cuFuncSetAttribute", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const bool known = attribute == kCudaFunctionSharedMemoryCarveout && value >= 0 && value <= 100;
  return function != nullptr && known ? CudaResult::kSuccess : CudaResult::kInvalidValue;
}

TS_FAKE_EXPORT CudaResult cuLaunchKernel(CudaFunctionHandle function, unsigned int grid_x,
                                         unsigned int grid_y, unsigned int grid_z,
                                         unsigned int block_x, unsigned int block_y,
                                         unsigned int block_z, unsigned int shared_bytes,
                                         CudaStreamHandle stream, void** arguments, void** extra) {
  const CudaResult early = enter("cuLaunchKernel", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const bool fits = grid_x > 0 && grid_y > 0 && grid_y <= 65535 && grid_z == 1 && block_x > 0 &&
                    block_x <= 1024 && block_x % 32 == 0 && block_y == 1 && block_z == 1;
  if (!fits || shared_bytes != 0 || extra != nullptr) return CudaResult::kInvalidValue;
  const std::lock_guard lock(state().mutex);
  CudaStreamState* const found = find_stream(stream);
  if (found == nullptr) return CudaResult::kInvalidHandle;
  if (function->name == "ts_nothing") return CudaResult::kSuccess;
  if (function->name != "ts_decode_frames") return CudaResult::kNotSupported;
  const FrameDecodeLaunch launch = {
      .runs = argument<FrameRuns>(arguments, 0),
      .decoded = argument<void*>(arguments, 1),
      .frames = grid_y,
      .blocks = grid_x,
      .warps = block_x / 32,
  };
  found->queue.submit([launch] {
    if (is_allowed(launch)) decode_frames(launch);
  });
  return CudaResult::kSuccess;
}

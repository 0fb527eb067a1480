#include "platform/cuda_driver.h"

#include <string>

#include "base/units.h"
#include "platform/shared_library.h"

namespace tensorstream {
namespace {

constexpr int kOldestVersion = 12000;

/// "12.4" of 12040.
std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// Null where `text_of` (cuGetErrorName, cuGetErrorString) does not know the result.
const char* known_text(CudaResult (*text_of)(CudaResult, const char**), CudaResult result) {
  const char* text = nullptr;
  return text_of(result, &text) == CudaResult::kSuccess ? text : nullptr;
}

/// The name of the first entry that `library` lacks; null where it has all of them.
const char* fill(CudaDriver& driver, void* library) {
#define TS_FIND_ENTRY(name, parameters) \
  if (!find_function(library, #name, driver.name)) return #name;
  TS_CUDA_DRIVER_ENTRIES(TS_FIND_ENTRY)
#undef TS_FIND_ENTRY
  return nullptr;
}

CudaDriverAbsence no_symbol(const std::string& path, const char* name) {
  return {CudaDriverAbsence::Reason::kNoSymbol,
          "the CUDA driver " + path + " lacks " + name + ": update the NVIDIA driver"};
}

CudaDriverAbsence init_failed(const CudaDriver& driver, const std::string& path,
                              CudaResult result) {
  const std::string what = "cuInit of the CUDA driver " + path + " " +
                           version_text(driver.version) +
                           " failed: " + describe_result(driver, result);
  if (result == CudaResult::kNoDevice) {
    return {CudaDriverAbsence::Reason::kNoDevice,
            what + "; it sees no device: look at nvidia-smi and at CUDA_VISIBLE_DEVICES"};
  }
  return {CudaDriverAbsence::Reason::kInitFailed,
          what + "; see whether nvidia-smi works here, and dmesg for what the kernel says"};
}

std::string advice(CudaResult result) {
  if (loses_context(result)) {
    return "the process's CUDA context is lost, and every later call fails too: restart the "
           "process";
  }
  switch (result) {
    case CudaResult::kOutOfMemory:
      return "free device memory or lower the budget";
    case CudaResult::kNotInitialized:
      return "a forked process cannot use its parent's driver: start processes by spawn";
    case CudaResult::kInvalidHandle:
    case CudaResult::kInvalidContext:
      return "a stream or event is gone, or is another device's";
    case CudaResult::kInvalidImage:
    case CudaResult::kNoBinaryForGpu:
      return "the compiler of kernels and the driver do not go together: update the NVIDIA driver";
    case CudaResult::kNotPermitted:
      return "callbacks of a stream must not call the device";
    case CudaResult::kStreamCaptureUnsupported:
    case CudaResult::kStreamCaptureInvalidated:
    case CudaResult::kStreamCaptureImplicit:
      return "streaming cannot be captured into a graph: run without capture";
    default:
      return "the cause may be work that was enqueued before this call";
  }
}

}  // namespace

CudaDriverOutcome load_cuda_driver(const std::string& path) {
  // Never closed: the driver's threads and exit handlers outlive whoever opened it.
  void* const library = open_library(path).handle;
  if (library == nullptr) {
    return CudaDriverAbsence{CudaDriverAbsence::Reason::kNoLibrary,
                             "no CUDA driver: " + last_loader_error() +
                                 "; install the NVIDIA driver, or use the device 'cpu'"};
  }
  CudaDriver driver;
  // Before the other entries: a driver too old for us lacks some of them, and its age is the
  // reason.
  if (!find_function(library, "cuDriverGetVersion", driver.cuDriverGetVersion)) {
    return no_symbol(path, "cuDriverGetVersion");
  }
  const CudaResult asked = driver.cuDriverGetVersion(&driver.version);
  if (asked != CudaResult::kSuccess) {
    return CudaDriverAbsence{CudaDriverAbsence::Reason::kInitFailed,
                             "the CUDA driver " + path + " does not tell its version: error " +
                                 std::to_string(static_cast<int>(asked))};
  }
  if (driver.version < kOldestVersion) {
    return CudaDriverAbsence{
        CudaDriverAbsence::Reason::kTooOld,
        "the CUDA driver " + path + " is for CUDA " + version_text(driver.version) + ", and CUDA " +
            version_text(kOldestVersion) + " or newer is needed: update the driver"};
  }
  if (const char* const missing = fill(driver, library)) return no_symbol(path, missing);
  const CudaResult started = driver.cuInit(0);
  if (started != CudaResult::kSuccess) return init_failed(driver, path, started);
  return driver;
}

const CudaDriverOutcome& system_cuda_driver() {
  static const CudaDriverOutcome outcome = load_cuda_driver(std::string(kCudaDriverLibrary));
  return outcome;
}

bool loses_context(CudaResult result) noexcept {
  switch (result) {
    case CudaResult::kEccUncorrectable:
    case CudaResult::kNvlinkUncorrectable:
    case CudaResult::kContained:
    case CudaResult::kIllegalAddress:
    case CudaResult::kLaunchTimeout:
    case CudaResult::kContextIsDestroyed:
    case CudaResult::kAssert:
    case CudaResult::kHardwareStackError:
    case CudaResult::kIllegalInstruction:
    case CudaResult::kMisalignedAddress:
    case CudaResult::kInvalidAddressSpace:
    case CudaResult::kInvalidPc:
    case CudaResult::kLaunchFailed:
    case CudaResult::kMpsClientTerminated:
    case CudaResult::kExternalDevice:
      return true;
    default:
      return false;
  }
}

std::string describe_result(const CudaDriver& driver, CudaResult result) {
  const char* const name = known_text(driver.cuGetErrorName, result);
  const char* const text = known_text(driver.cuGetErrorString, result);
  std::string said = name == nullptr ? "a result without a name" : name;
  said += " (" + std::to_string(static_cast<int>(result));
  if (text != nullptr) said += std::string(": ") + text;
  return said + ")";
}

CudaError cuda_error(const CudaDriver& driver, CudaResult result, const CudaCall& call,
                     std::source_location where) {
  std::string message = std::string(call.object) + ": " + call.name;
  if (call.size_bytes > 0) message += " of " + format_size(call.size_bytes);
  message += " failed: " + describe_result(driver, result) + "; " + advice(result);
  return {message, call.name, static_cast<int>(result), where};
}

}  // namespace tensorstream

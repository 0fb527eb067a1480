// The CUDA driver's entry points, opened at run time: no toolkit is needed to build, and no driver
// to run. Where cuda.h is found, a test compares everything declared here with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <string_view>
#include <variant>

#include "tensorstream/error.h"

namespace tensorstream {

/// Every result that the library looks at: entry(our name, the driver's name, its value).
// clang-format off
#define TS_CUDA_RESULTS(entry)                                                        \
  entry(kSuccess, CUDA_SUCCESS, 0)                                                    \
  entry(kInvalidValue, CUDA_ERROR_INVALID_VALUE, 1)                                   \
  entry(kOutOfMemory, CUDA_ERROR_OUT_OF_MEMORY, 2)                                    \
  entry(kNotInitialized, CUDA_ERROR_NOT_INITIALIZED, 3)                               \
  entry(kDeinitialized, CUDA_ERROR_DEINITIALIZED, 4)                                  \
  entry(kNoDevice, CUDA_ERROR_NO_DEVICE, 100)                                         \
  entry(kInvalidDevice, CUDA_ERROR_INVALID_DEVICE, 101)                               \
  entry(kInvalidImage, CUDA_ERROR_INVALID_IMAGE, 200)                                 \
  entry(kInvalidContext, CUDA_ERROR_INVALID_CONTEXT, 201)                             \
  entry(kNoBinaryForGpu, CUDA_ERROR_NO_BINARY_FOR_GPU, 209)                           \
  entry(kEccUncorrectable, CUDA_ERROR_ECC_UNCORRECTABLE, 214)                         \
  entry(kNvlinkUncorrectable, CUDA_ERROR_NVLINK_UNCORRECTABLE, 220)                   \
  entry(kContained, CUDA_ERROR_CONTAINED, 226)                                        \
  entry(kOperatingSystem, CUDA_ERROR_OPERATING_SYSTEM, 304)                           \
  entry(kInvalidHandle, CUDA_ERROR_INVALID_HANDLE, 400)                               \
  entry(kNotFound, CUDA_ERROR_NOT_FOUND, 500)                                         \
  entry(kNotReady, CUDA_ERROR_NOT_READY, 600)                                         \
  entry(kIllegalAddress, CUDA_ERROR_ILLEGAL_ADDRESS, 700)                             \
  entry(kLaunchTimeout, CUDA_ERROR_LAUNCH_TIMEOUT, 702)                               \
  entry(kContextIsDestroyed, CUDA_ERROR_CONTEXT_IS_DESTROYED, 709)                    \
  entry(kAssert, CUDA_ERROR_ASSERT, 710)                                              \
  entry(kHostMemoryAlreadyRegistered, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, 712) \
  entry(kHostMemoryNotRegistered, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, 713)         \
  entry(kHardwareStackError, CUDA_ERROR_HARDWARE_STACK_ERROR, 714)                    \
  entry(kIllegalInstruction, CUDA_ERROR_ILLEGAL_INSTRUCTION, 715)                     \
  entry(kMisalignedAddress, CUDA_ERROR_MISALIGNED_ADDRESS, 716)                       \
  entry(kInvalidAddressSpace, CUDA_ERROR_INVALID_ADDRESS_SPACE, 717)                  \
  entry(kInvalidPc, CUDA_ERROR_INVALID_PC, 718)                                       \
  entry(kLaunchFailed, CUDA_ERROR_LAUNCH_FAILED, 719)                                 \
  entry(kNotPermitted, CUDA_ERROR_NOT_PERMITTED, 800)                                 \
  entry(kNotSupported, CUDA_ERROR_NOT_SUPPORTED, 801)                                 \
  entry(kMpsClientTerminated, CUDA_ERROR_MPS_CLIENT_TERMINATED, 810)                  \
  entry(kStreamCaptureUnsupported, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 900)        \
  entry(kStreamCaptureInvalidated, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 901)        \
  entry(kStreamCaptureImplicit, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, 906)              \
  entry(kExternalDevice, CUDA_ERROR_EXTERNAL_DEVICE, 911)
// clang-format on

/// CUresult; a driver may return values that are not named here.
enum class CudaResult : int {
#define TS_CUDA_RESULT(ours, theirs, value) ours = (value),
  TS_CUDA_RESULTS(TS_CUDA_RESULT)
#undef TS_CUDA_RESULT
};

// What the handles point to, which only the driver knows.
struct CudaContextState;
struct CudaStreamState;
struct CudaEventState;
struct CudaModuleState;
struct CudaFunctionState;

using CudaOrdinal = int;                        // CUdevice
using CudaAddress = unsigned long long;         // CUdeviceptr
using CudaContextHandle = CudaContextState*;    // CUcontext
using CudaStreamHandle = CudaStreamState*;      // CUstream
using CudaEventHandle = CudaEventState*;        // CUevent
using CudaModuleHandle = CudaModuleState*;      // CUmodule
using CudaFunctionHandle = CudaFunctionState*;  // CUfunction
using CudaHostFunction = void (*)(void* data);  // CUhostFn

/// The values of the driver's flags and attributes that the library uses.
inline constexpr unsigned int kCudaStreamNonBlocking = 0x1;
inline constexpr unsigned int kCudaEventDisableTiming = 0x2;
inline constexpr int kCudaCaptureNone = 0;
inline constexpr int kCudaCaptureModeRelaxed = 2;
inline constexpr unsigned int kCudaHostRegisterPortable = 0x1;
inline constexpr unsigned int kCudaHostRegisterDeviceMap = 0x2;
inline constexpr unsigned int kCudaHostRegisterReadOnly = 0x8;
inline constexpr int kCudaAttributeHostRegisterSupported = 99;
inline constexpr int kCudaAttributeReadOnlyHostRegisterSupported = 113;
inline constexpr int kCudaAttributeComputeCapabilityMajor = 75;
inline constexpr int kCudaAttributeComputeCapabilityMinor = 76;
/// Of a function: the share of a multiprocessor's memory that is to be shared memory, in percent.
inline constexpr int kCudaFunctionSharedMemoryCarveout = 9;
/// Streams that the driver has without being asked, as handles; 0 is the legacy one too.
inline constexpr std::uintptr_t kCudaLegacyStream = 0x1;
inline constexpr std::uintptr_t kCudaPerThreadStream = 0x2;

/// The one list of the driver's functions: entry(name as exported, parameters). Names carry the
/// version that the library is written for, so that a driver that changes a function's meaning
/// under a newer version is not called with the old parameters.
// clang-format off
#define TS_CUDA_DRIVER_ENTRIES(entry)                                                             \
  entry(cuDriverGetVersion, (int* version))                                                       \
  entry(cuInit, (unsigned int flags))                                                             \
  entry(cuGetErrorName, (CudaResult result, const char** text))                                   \
  entry(cuGetErrorString, (CudaResult result, const char** text))                                 \
  entry(cuDeviceGetCount, (int* count))                                                           \
  entry(cuDeviceGet, (CudaOrdinal* device, int index))                                            \
  entry(cuDeviceGetName, (char* name, int size, CudaOrdinal device))                              \
  entry(cuDeviceGetPCIBusId, (char* id, int size, CudaOrdinal device))                            \
  entry(cuDeviceGetAttribute, (int* value, int attribute, CudaOrdinal device))                    \
  entry(cuDeviceTotalMem_v2, (std::size_t* size_bytes, CudaOrdinal device))                       \
  entry(cuDevicePrimaryCtxRetain, (CudaContextHandle* context, CudaOrdinal device))               \
  entry(cuDevicePrimaryCtxRelease_v2, (CudaOrdinal device))                                       \
  entry(cuCtxPushCurrent_v2, (CudaContextHandle context))                                         \
  entry(cuCtxPopCurrent_v2, (CudaContextHandle* context))                                         \
  entry(cuMemGetInfo_v2, (std::size_t* free_bytes, std::size_t* total_bytes))                     \
  entry(cuMemAlloc_v2, (CudaAddress* address, std::size_t size_bytes))                            \
  entry(cuMemFree_v2, (CudaAddress address))                                                      \
  entry(cuMemHostRegister_v2, (void* data, std::size_t size_bytes, unsigned int flags))           \
  entry(cuMemHostUnregister, (void* data))                                                        \
  entry(cuMemHostGetDevicePointer_v2, (CudaAddress* address, void* data, unsigned int flags))     \
  entry(cuMemcpyHtoDAsync_v2, (CudaAddress target, const void* source, std::size_t size_bytes,    \
                               CudaStreamHandle stream))                                          \
  entry(cuMemcpyDtoHAsync_v2, (void* target, CudaAddress source, std::size_t size_bytes,          \
                               CudaStreamHandle stream))                                          \
  entry(cuMemsetD8Async, (CudaAddress target, unsigned char value, std::size_t size_bytes,        \
                          CudaStreamHandle stream))                                               \
  entry(cuStreamCreateWithPriority, (CudaStreamHandle* stream, unsigned int flags, int priority)) \
  entry(cuStreamDestroy_v2, (CudaStreamHandle stream))                                            \
  entry(cuStreamGetId, (CudaStreamHandle stream, unsigned long long* id))                         \
  entry(cuStreamIsCapturing, (CudaStreamHandle stream, int* status))                              \
  entry(cuThreadExchangeStreamCaptureMode, (int* mode))                                           \
  entry(cuStreamSynchronize, (CudaStreamHandle stream))                                           \
  entry(cuStreamWaitEvent, (CudaStreamHandle stream, CudaEventHandle event, unsigned int flags))  \
  entry(cuLaunchHostFunc, (CudaStreamHandle stream, CudaHostFunction function, void* data))       \
  entry(cuEventCreate, (CudaEventHandle* event, unsigned int flags))                              \
  entry(cuEventDestroy_v2, (CudaEventHandle event))                                               \
  entry(cuEventRecord, (CudaEventHandle event, CudaStreamHandle stream))                          \
  entry(cuEventQuery, (CudaEventHandle event))                                                    \
  entry(cuEventSynchronize, (CudaEventHandle event))                                              \
  entry(cuModuleLoadData, (CudaModuleHandle* module, const void* image))                          \
  entry(cuModuleUnload, (CudaModuleHandle module))                                                \
  entry(cuModuleGetFunction, (CudaFunctionHandle* function, CudaModuleHandle module,              \
                              const char* name))                                                  \
  entry(cuFuncSetAttribute, (CudaFunctionHandle function, int attribute, int value))              \
  entry(cuLaunchKernel, (CudaFunctionHandle function, unsigned int grid_x, unsigned int grid_y,   \
                         unsigned int grid_z, unsigned int block_x, unsigned int block_y,         \
                         unsigned int block_z, unsigned int shared_bytes,                         \
                         CudaStreamHandle stream, void** arguments, void** extra))
// clang-format on

/// The table of entry points. An immutable value once loaded; its library stays loaded for good.
struct CudaDriver {
  // NOLINTNEXTLINE(bugprone-macro-parentheses): `parameters` is a parenthesised list already
#define TS_CUDA_DRIVER_FIELD(name, parameters) CudaResult(*name) parameters = nullptr;
  TS_CUDA_DRIVER_ENTRIES(TS_CUDA_DRIVER_FIELD)
#undef TS_CUDA_DRIVER_FIELD
  /// As the driver numbers it: 12040 is 12.4.
  int version = 0;
};

/// Why there is no driver to call.
struct CudaDriverAbsence {
  enum class Reason { kNoLibrary, kTooOld, kNoSymbol, kNoDevice, kInitFailed };
  Reason reason = Reason::kNoLibrary;
  /// What is missing, and what to do.
  std::string message;
};

using CudaDriverOutcome = std::variant<CudaDriver, CudaDriverAbsence>;

inline constexpr std::string_view kCudaDriverLibrary = "libcuda.so.1";

/// Opens the driver's library at `path`, takes its entry points and initialises it.
CudaDriverOutcome load_cuda_driver(const std::string& path);
/// This machine's driver, loaded once a process.
const CudaDriverOutcome& system_cuda_driver();

/// True for results after which every later call fails too, until the process is started again.
bool loses_context(CudaResult result) noexcept;
/// "CUDA_ERROR_INVALID_VALUE (1: invalid argument)".
std::string describe_result(const CudaDriver& driver, CudaResult result);

/// A call, for its error.
struct CudaCall {
  /// The driver's function, as it is exported.
  const char* name;
  /// "device cuda:0".
  std::string_view object;
  /// Of the memory that it was about; 0 for none.
  std::uint64_t size_bytes = 0;
};
/// The error that says that `call` gave `result`, and what to do.
CudaError cuda_error(const CudaDriver& driver, CudaResult result, const CudaCall& call,
                     std::source_location where = std::source_location::current());

}  // namespace tensorstream

// Our declarations of the CUDA driver against the real header, where there is one.
#include <gtest/gtest.h>

#include "platform/cuda_driver.h"

#if __has_include(<cuda.h>)
#include <cuda.h>

#include <type_traits>

namespace tensorstream {
namespace {

/// The driver's own type behind a handle of ours.
template <typename Ours>
struct Counterpart;
template <>
struct Counterpart<CudaContextState> {
  using Theirs = CUctx_st;
};
template <>
struct Counterpart<CudaStreamState> {
  using Theirs = CUstream_st;
};
template <>
struct Counterpart<CudaEventState> {
  using Theirs = CUevent_st;
};
template <>
struct Counterpart<CudaModuleState> {
  using Theirs = CUmod_st;
};
template <>
struct Counterpart<CudaFunctionState> {
  using Theirs = CUfunc_st;
};

/// True where a value of one type is passed as one of the other.
template <typename Ours, typename Theirs>
struct SameAbi : std::is_same<Ours, Theirs> {};
/// Enumerations differ in the sign that the compiler gives them, not in how they are passed.
template <typename Ours, typename Theirs>
  requires(std::is_enum_v<Theirs>)
struct SameAbi<Ours, Theirs>
    : std::bool_constant<(std::is_enum_v<Ours> || std::is_same_v<Ours, int>) &&
                         sizeof(Ours) == sizeof(Theirs)> {};
template <typename Ours, typename Theirs>
  requires(std::is_class_v<Theirs>)
struct SameAbi<Ours, Theirs> : std::is_same<typename Counterpart<Ours>::Theirs, Theirs> {};
template <typename Ours, typename Theirs>
struct SameAbi<Ours*, Theirs*>
    : std::bool_constant<std::is_const_v<Ours> == std::is_const_v<Theirs> &&
                         SameAbi<std::remove_const_t<Ours>, std::remove_const_t<Theirs>>::value> {};
template <typename OurResult, typename... Ours, typename TheirResult, typename... Theirs>
struct SameAbi<OurResult(Ours...), TheirResult(Theirs...)> {
  static constexpr bool value = [] {
    if constexpr (sizeof...(Ours) != sizeof...(Theirs)) {
      return false;
    } else {
      return SameAbi<OurResult, TheirResult>::value && (SameAbi<Ours, Theirs>::value && ...);
    }
  }();
};

static_assert(!SameAbi<CudaResult(int), CUresult(unsigned int)>::value);
static_assert(!SameAbi<CudaResult(CudaStreamHandle), CUresult(CUevent)>::value);
static_assert(!SameAbi<CudaResult(void*, std::size_t), CUresult(void*)>::value);

#define TS_SAME_ENTRY(name, parameters) \
  static_assert(SameAbi<decltype(CudaDriver::name), decltype(&::name)>::value, #name);
TS_CUDA_DRIVER_ENTRIES(TS_SAME_ENTRY)
#undef TS_SAME_ENTRY

static_assert(SameAbi<CudaOrdinal, CUdevice>::value);
static_assert(SameAbi<CudaAddress, CUdeviceptr>::value);
static_assert(SameAbi<CudaHostFunction, CUhostFn>::value);

static_assert(kCudaStreamNonBlocking == CU_STREAM_NON_BLOCKING);
static_assert(kCudaEventDisableTiming == CU_EVENT_DISABLE_TIMING);
static_assert(kCudaHostRegisterPortable == CU_MEMHOSTREGISTER_PORTABLE);
static_assert(kCudaHostRegisterDeviceMap == CU_MEMHOSTREGISTER_DEVICEMAP);
static_assert(kCudaCaptureNone == CU_STREAM_CAPTURE_STATUS_NONE);
static_assert(kCudaCaptureModeRelaxed == CU_STREAM_CAPTURE_MODE_RELAXED);
static_assert(kCudaAttributeHostRegisterSupported == CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED);
static_assert(kCudaAttributeComputeCapabilityMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(kCudaAttributeComputeCapabilityMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(kCudaFunctionSharedMemoryCarveout ==
              CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT);

TEST(CudaHeader, NamesTheSameResults) {
#define TS_EXPECT_SAME_RESULT(ours, theirs, value) \
  EXPECT_EQ(static_cast<int>(CudaResult::ours), static_cast<int>(::theirs));
  TS_CUDA_RESULTS(TS_EXPECT_SAME_RESULT)
#undef TS_EXPECT_SAME_RESULT
}

TEST(CudaHeader, NamesTheSameDefaultStreams) {
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(CU_STREAM_LEGACY), kCudaLegacyStream);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(CU_STREAM_PER_THREAD), kCudaPerThreadStream);
}

}  // namespace
}  // namespace tensorstream

#else

TEST(CudaHeader, NamesTheSameResults) { GTEST_SKIP() << "cuda.h was not found"; }

#endif

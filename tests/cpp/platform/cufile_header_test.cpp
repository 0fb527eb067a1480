// Our declarations of cuFile against the real header, where there is one.
#include <gtest/gtest.h>

#include "platform/cufile.h"

#if __has_include(<cufile.h>)
#include <cufile.h>

#include <cstddef>
#include <type_traits>

namespace tensorstream {
namespace {

#define TS_SAME_RESULT(ours, theirs, value, text) \
  static_assert(static_cast<int>(CufileResult::ours) == theirs, #theirs);
TS_CUFILE_RESULTS(TS_SAME_RESULT)
#undef TS_SAME_RESULT

static_assert(sizeof(CufileStatus) == sizeof(CUfileError_t));
static_assert(offsetof(CufileStatus, cuda_result) == offsetof(CUfileError_t, cu_err));
static_assert(sizeof(CufileDescriptor) == sizeof(CUfileDescr_t));
static_assert(offsetof(CufileDescriptor, descriptor) == offsetof(CUfileDescr_t, handle));
static_assert(offsetof(CufileDescriptor, operations) == offsetof(CUfileDescr_t, fs_ops));
static_assert(sizeof(CufileProperties) >= sizeof(CUfileDrvProps_t));
static_assert(offsetof(CufileProperties, nvidia_fs.control_flags) ==
              offsetof(CUfileDrvProps_t, nvfs.dcontrolflags));
static_assert(offsetof(CufileProperties, feature_flags) == offsetof(CUfileDrvProps_t, fflags));
static_assert(offsetof(CufileProperties, largest_cache_kib) ==
              offsetof(CUfileDrvProps_t, max_device_cache_size));
static_assert(kCufileOpaqueDescriptor == CU_FILE_HANDLE_TYPE_OPAQUE_FD);
static_assert(kCufilePollMode == 1U << unsigned{CU_FILE_USE_POLL_MODE});
static_assert(kCufileCompatibilityMode == 1U << unsigned{CU_FILE_ALLOW_COMPAT_MODE});
static_assert(std::is_same_v<CufileHandle, CUfileHandle_t>);
static_assert(std::is_same_v<decltype(Cufile::cuFileRead), decltype(&::cuFileRead)>);

TEST(CufileHeader, AgreesWithOurDeclarations) { SUCCEED() << "checked by the compiler"; }

}  // namespace
}  // namespace tensorstream

#else

TEST(CufileHeader, AgreesWithOurDeclarations) { GTEST_SKIP() << "cufile.h is not installed here"; }

#endif

// cuFile, NVIDIA's reads of files straight into device memory: one list of its entry points, opened
// at run time. Neither its header nor its library is needed to build TensorStream. Where cufile.h
// is found, a test compares everything declared here with it.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <type_traits>
#include <variant>

#include "platform/shared_library.h"
#include "tensorstream/error.h"

namespace tensorstream {

class File;

/// Every result that the library looks at: entry(our name, cuFile's name, its value, what it says).
// clang-format off
#define TS_CUFILE_RESULTS(entry)                                                                  \
  entry(kSuccess, CU_FILE_SUCCESS, 0, "success")                                                  \
  entry(kDriverNotInitialized, CU_FILE_DRIVER_NOT_INITIALIZED, 5001,                              \
        "nvidia-fs is not loaded")                                                                \
  entry(kDriverVersionMismatch, CU_FILE_DRIVER_VERSION_MISMATCH, 5004,                            \
        "nvidia-fs is of another version")                                                        \
  entry(kPlatformNotSupported, CU_FILE_PLATFORM_NOT_SUPPORTED, 5007,                              \
        "this platform is not supported")                                                         \
  entry(kIoNotSupported, CU_FILE_IO_NOT_SUPPORTED, 5008, "this file is not supported")            \
  entry(kDeviceNotSupported, CU_FILE_DEVICE_NOT_SUPPORTED, 5009, "this GPU is not supported")     \
  entry(kCudaDriverError, CU_FILE_CUDA_DRIVER_ERROR, 5011, "the CUDA driver failed")              \
  entry(kCudaContextMismatch, CU_FILE_CUDA_CONTEXT_MISMATCH, 5015,                                \
        "the memory is of another context")                                                       \
  entry(kInvalidFileType, CU_FILE_INVALID_FILE_TYPE, 5018, "a file of this type is not supported")\
  entry(kInvalidOpenFlag, CU_FILE_INVALID_FILE_OPEN_FLAG, 5019,                                   \
        "the file is open with a flag that is not supported")                                     \
  entry(kDirectIoNotSet, CU_FILE_DIO_NOT_SET, 5020, "the file is not open for direct reads")      \
  entry(kInvalidValue, CU_FILE_INVALID_VALUE, 5022, "an argument is invalid")                     \
  entry(kPermissionDenied, CU_FILE_PERMISSION_DENIED, 5025, "permission is denied")               \
  entry(kDriverAlreadyOpen, CU_FILE_DRIVER_ALREADY_OPEN, 5026, "the driver is open already")      \
  entry(kHandleAlreadyRegistered, CU_FILE_HANDLE_ALREADY_REGISTERED, 5028,                        \
        "the file is registered already")                                                         \
  entry(kInternalError, CU_FILE_INTERNAL_ERROR, 5030, "internal error")                           \
  entry(kIoDisabled, CU_FILE_IO_DISABLED, 5034, "its configuration disables it for this file")    \
  entry(kIoError, CU_FILE_IO_ERROR, 5044, "the read failed")
// clang-format on

/// CUfileOpError; cuFile may return values that are not named here.
enum class CufileResult : int {
#define TS_CUFILE_RESULT(ours, theirs, value, text) ours = (value),
  TS_CUFILE_RESULTS(TS_CUFILE_RESULT)
#undef TS_CUFILE_RESULT
};

/// CUfileError_t
struct CufileStatus {
  CufileResult result = CufileResult::kSuccess;
  int cuda_result = 0;  // of the driver, where the result is kCudaDriverError
};

using CufileHandle = void*;  // CUfileHandle_t

/// CUfileDescr_t
struct CufileDescriptor {
  int type = 0;  // kCufileOpaqueDescriptor
  union {
    int descriptor;
    void* handle = nullptr;
  };
  const void* operations = nullptr;  // of file systems in user space
};

/// CUfileDrvProps_t. It has grown at its end, and may again: there is room for that.
struct CufileProperties {
  struct {
    unsigned int major_version = 0;
    unsigned int minor_version = 0;
    std::size_t poll_threshold = 0;
    std::size_t largest_direct_read = 0;
    unsigned int status_flags = 0;   // bits by kind of storage
    unsigned int control_flags = 0;  // kCufile...Mode
  } nvidia_fs;
  unsigned int feature_flags = 0;      // kCufilePeerToPeerFeature
  unsigned int largest_cache_kib = 0;  // that it takes of a GPU
  std::array<unsigned int, 4> limits{};
  std::array<unsigned int, 32> room{};
};

inline constexpr int kCufileOpaqueDescriptor = 1;
/// Bits of the control flags: reads may busily wait; all others let reads go through host memory.
inline constexpr unsigned int kCufilePollMode = 1U << 0U;
inline constexpr unsigned int kCufileCompatibilityMode = 1U << 1U;
inline constexpr unsigned int kCufilePeerToPeerFeature = 1U << 4U;

// What is passed by value or by address has to be as cuFile has it (CUDA 11.4 to 13).
static_assert(sizeof(CufileStatus) == 8 && std::is_trivially_copyable_v<CufileStatus>);
static_assert(sizeof(CufileDescriptor) == 24);
static_assert(offsetof(CufileDescriptor, descriptor) == 8);
static_assert(offsetof(CufileDescriptor, operations) == 16);
static_assert(offsetof(CufileProperties, nvidia_fs.status_flags) == 24);
static_assert(offsetof(CufileProperties, nvidia_fs.control_flags) == 28);
static_assert(offsetof(CufileProperties, feature_flags) == 32);
static_assert(offsetof(CufileProperties, largest_cache_kib) == 36);

/// The one list of its functions: entry(what it returns, name as exported, parameters).
// clang-format off
#define TS_CUFILE_ENTRIES(entry)                                                                  \
  entry(CufileStatus, cuFileDriverOpen, ())                                                       \
  entry(CufileStatus, cuFileDriverGetProperties, (CufileProperties* properties))                  \
  entry(CufileStatus, cuFileHandleRegister, (CufileHandle* handle, CufileDescriptor* descriptor)) \
  entry(void, cuFileHandleDeregister, (CufileHandle handle))                                      \
  entry(ssize_t, cuFileRead, (CufileHandle handle, void* memory, std::size_t size_bytes,          \
                              off_t file_offset, off_t memory_offset))
// clang-format on

/// The table of entry points. An immutable value once loaded; its library stays loaded for good,
/// and its driver open: others in the process may use it.
struct Cufile {
  // NOLINTNEXTLINE(bugprone-macro-parentheses): `parameters` is a parenthesised list already
#define TS_CUFILE_FIELD(result, name, parameters) result(*name) parameters = nullptr;
  TS_CUFILE_ENTRIES(TS_CUFILE_FIELD)
#undef TS_CUFILE_FIELD
  /// Where it was found, as the loader was asked for it.
  std::string path;
  /// As it said when its driver was opened.
  CufileProperties properties;
};

/// Where to look for cuFile, and for what it needs to read from peer to peer.
struct CufilePlaces : LibraryPlaces {
  /// Where the kernel shows that nvidia-fs is loaded.
  std::string nvidia_fs = "/proc/driver/nvidia-fs";
};

bool has_nvidia_fs(const CufilePlaces& places) noexcept;

/// Why there is no cuFile to call.
struct CufileAbsence {
  enum class Reason { kNoLibrary, kNoSymbol, kOpenFailed };
  Reason reason = Reason::kNoLibrary;
  /// What is missing, and what to do.
  std::string message;
};

using CufileOutcome = std::variant<Cufile, CufileAbsence>;

/// The name that it is looked for by.
inline constexpr std::array<const char*, 1> kCufileLibraries = {"libcufile.so.0"};

/// Opens the library and its driver, with a context of a GPU current, and asks what it does.
CufileOutcome open_cufile(const LibraryPlaces& places);

/// How cuFile's reads get to a device.
struct CufileMode {
  /// Whether the disk writes to device memory itself: proven where cuFile refuses anything else.
  bool is_peer_to_peer = false;
  /// In what way, or why not, for people.
  std::string about;
};
CufileMode mode_of(const CufileProperties& properties);

/// "5030 (internal error)".
std::string describe_result(CufileResult result);

/// True for what cuFileRead returns, below 0, that is no errno.
constexpr bool is_cufile_result(int error_number) noexcept { return error_number > 5000; }

/// The reason why `file` cannot be registered, which gave `status`, and what to do.
UnsupportedError cufile_refusal(const File& file, CufileStatus status,
                                std::source_location where = std::source_location::current());
/// The error of a read of `size_bytes` from `offset_bytes` on that failed with `result`.
CufileError cufile_read_error(const File& file, std::uint64_t offset_bytes,
                              std::uint64_t size_bytes, CufileResult result,
                              std::source_location where = std::source_location::current());

}  // namespace tensorstream

// cuFile on the fake driver: it reads by pread into device memory, which is host memory.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>

#include "fake_cuda/fake_state.h"

using namespace tensorstream;
using namespace tensorstream::fake_cuda;

namespace {

/// A file that is registered, opened again: O_DIRECT is for aligned memory.
struct FakeFile {
  explicit FakeFile(int from)
      : descriptor(
            ::open(("/proc/self/fd/" + std::to_string(from)).c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~FakeFile() { ::close(descriptor); }
  FakeFile(const FakeFile&) = delete;
  FakeFile& operator=(const FakeFile&) = delete;
  const int descriptor;
};

CufileStatus status(int result) { return {static_cast<CufileResult>(result), 0}; }

/// As cuFile gives a failure: an errno by -1, one of its own results by itself.
ssize_t failure(int number) {
  if (is_cufile_result(number)) return -number;
  errno = number;
  return -1;
}

}  // namespace

TS_FAKE_EXPORT CufileStatus cuFileDriverOpen() {
  return status(static_cast<int>(enter("cuFileDriverOpen", Needs::kNothing)));
}

TS_FAKE_EXPORT CufileStatus cuFileDriverGetProperties(CufileProperties* properties) {
  const int early = static_cast<int>(enter("cuFileDriverGetProperties", Needs::kNothing));
  if (early != 0) return status(early);
  const std::lock_guard lock(state().mutex);
  const auto setting = [](const char* name) {
    return static_cast<unsigned int>(state().setting(name));
  };
  *properties = {};
  properties->nvidia_fs.major_version = setting("cufile_nvidia_fs_version");
  properties->nvidia_fs.minor_version = properties->nvidia_fs.major_version == 0 ? 0 : 24;
  properties->nvidia_fs.control_flags = setting("cufile_control_flags");
  properties->feature_flags = setting("cufile_feature_flags");
  properties->largest_cache_kib = setting("cufile_largest_cache_kib");
  return status(0);
}

TS_FAKE_EXPORT CufileStatus cuFileHandleRegister(CufileHandle* handle,
                                                 CufileDescriptor* descriptor) {
  const int early = static_cast<int>(enter("cuFileHandleRegister", Needs::kNothing));
  if (early != 0) return status(early);
  if (descriptor->type != kCufileOpaqueDescriptor || descriptor->operations != nullptr) {
    return {CufileResult::kInvalidValue, 0};
  }
  const int flags = ::fcntl(descriptor->descriptor, F_GETFL);
  if ((flags & O_NONBLOCK) != 0) return {CufileResult::kInvalidOpenFlag, 0};
  if ((flags & O_DIRECT) == 0) {
    return {CufileResult::kDirectIoNotSet, 0};
  }
  *handle = std::make_unique<FakeFile>(descriptor->descriptor).release();
  const std::lock_guard lock(state().mutex);
  state().files.insert(*handle);
  return status(0);
}

TS_FAKE_EXPORT void cuFileHandleDeregister(CufileHandle handle) {
  static_cast<void>(enter("cuFileHandleDeregister", Needs::kNothing));
  if (in_host_function()) enter("cuFile in a host function", Needs::kNothing);
  const std::unique_ptr<FakeFile> ended(static_cast<FakeFile*>(handle));
  const std::lock_guard lock(state().mutex);
  state().files.erase(handle);
}

TS_FAKE_EXPORT ssize_t cuFileRead(CufileHandle handle, void* memory, std::size_t size_bytes,
                                  off_t file_offset, off_t memory_offset) {
  const int early = static_cast<int>(enter("cuFileRead", Needs::kContext));
  if (early == static_cast<int>(CudaResult::kInvalidContext)) {
    return failure(static_cast<int>(CufileResult::kCudaContextMismatch));
  }
  if (early != 0) return failure(early);
  std::byte* const target = static_cast<std::byte*>(memory) + memory_offset;
  {
    const std::lock_guard lock(state().mutex);
    const auto longest = static_cast<std::size_t>(state().setting("cufile_longest_read"));
    size_bytes = std::min(size_bytes, longest);
    const auto address = reinterpret_cast<CudaAddress>(target);
    if (!state().files.contains(handle) || !is_device_memory(address, size_bytes)) {
      return failure(static_cast<int>(CufileResult::kInvalidValue));
    }
  }
  return ::pread(static_cast<FakeFile*>(handle)->descriptor, target, size_bytes, file_offset);
}

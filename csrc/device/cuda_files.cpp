#include "device/cuda_files.h"

#include <cerrno>
#include <utility>

#include "device/cuda_context.h"
#include "platform/file.h"
#include "platform/process_memory.h"

namespace tensorstream {

CudaFiles::Registration::Registration(Registration&& other) noexcept
    : files_(std::exchange(other.files_, nullptr)), descriptor_(other.descriptor_) {}

CudaFiles::Registration::~Registration() {
  if (files_ != nullptr) files_->remove(descriptor_);
}

CudaFiles::CudaFiles(std::shared_ptr<const void> owner, const CudaContext& context,
                     const Cufile& cufile)
    : owner_(std::move(owner)), context_(context), cufile_(cufile), process_(process_id()) {}

CudaFiles::Registration CudaFiles::add(const File& file) {
  const CudaContext::BesideCaptures current(context_);
  CufileDescriptor descriptor;
  descriptor.type = kCufileOpaqueDescriptor;
  descriptor.descriptor = file.descriptor();
  CufileHandle handle = nullptr;
  const CufileStatus status = cufile_.cuFileHandleRegister(&handle, &descriptor);
  if (status.result != CufileResult::kSuccess) throw cufile_refusal(file, status);
  const MutexLock lock(mutex_);
  handles_[file.descriptor()] = handle;
  return {*this, file.descriptor()};
}

// In a forked child cuFile must not be called.
void CudaFiles::remove(int descriptor) noexcept {
  if (process_ != process_id()) return;
  CufileHandle handle = nullptr;
  {
    const MutexLock lock(mutex_);
    const auto found = handles_.find(descriptor);
    handle = found->second;
    handles_.erase(found);
  }
  cufile_.cuFileHandleDeregister(handle);
}

CufileHandle CudaFiles::handle_of(int descriptor) {
  const MutexLock lock(mutex_);
  return handles_.at(descriptor);
}

std::int64_t CudaFiles::read_once(int descriptor, std::uint64_t offset_bytes,
                                  std::span<std::byte> target) noexcept {
  try {
    const CudaContext::BesideCaptures current(context_);
    errno = 0;
    const ssize_t count = cufile_.cuFileRead(handle_of(descriptor), target.data(), target.size(),
                                             static_cast<off_t>(offset_bytes), 0);
    if (count != -1) return count;
    return errno == 0 ? -EIO : -std::int64_t{errno};
  } catch (const CudaError&) {
    return -static_cast<std::int64_t>(CufileResult::kCudaDriverError);
  }
}

}  // namespace tensorstream

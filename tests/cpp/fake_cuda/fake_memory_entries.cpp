// The fake driver's functions of memory.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <utility>

#include "fake_cuda/fake_state.h"

using namespace tensorstream;
using namespace tensorstream::fake_cuda;

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kSmallAlignment = 512;
constexpr std::size_t kMostTouched = std::size_t{128} << 20;
constexpr std::size_t kLarge = std::size_t{1} << 20;

std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// With the mutex held, as all of these.
bool is_allocated(CudaAddress address, std::size_t size_bytes) {
  for (const auto& [device, context] : state().contexts) {
    auto after = context->allocations.upper_bound(address);
    if (after == context->allocations.begin()) continue;
    const auto& [begin, allocation] = *std::prev(after);
    const CudaAddress offset = address - begin;
    if (offset <= allocation.size_bytes && size_bytes <= allocation.size_bytes - offset) {
      return true;
    }
  }
  return false;
}

enum class HostMemory { kPageable, kRegistered, kPartly };

HostMemory kind_of(const void* data, std::size_t size_bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  for (const auto& [registered, registered_bytes] : state().registrations) {
    const std::uintptr_t end = registered + registered_bytes;
    if (begin >= registered && begin + size_bytes <= end) return HostMemory::kRegistered;
    if (begin < end && begin + size_bytes > registered) return HostMemory::kPartly;
  }
  return HostMemory::kPageable;
}

bool overlaps_registered_pages(std::uintptr_t begin, std::size_t size_bytes) {
  for (const auto& [registered, registered_bytes] : state().registrations) {
    if (begin / kPage * kPage < round_up(registered + registered_bytes, kPage) &&
        registered / kPage * kPage < round_up(begin + size_bytes, kPage)) {
      return true;
    }
  }
  return false;
}

/// Asked of the kernel, by writing the byte that is there.
bool is_writable(void* data) {
  int ends[2];
  if (::pipe(ends) != 0) return true;
  const bool writable = ::write(ends[1], data, 1) == 1 && ::read(ends[0], data, 1) == 1;
  ::close(ends[0]);
  ::close(ends[1]);
  return writable;
}

/// As the driver does to what it pins; the beginning will do.
void touch(const void* data, std::size_t size_bytes) {
  const auto* const bytes = static_cast<const volatile char*>(data);
  for (std::size_t i = 0; i < std::min(size_bytes, kMostTouched); i += kPage) {
    static_cast<void>(bytes[i]);
  }
}

struct Copy {
  void* target;
  const void* source;
  std::size_t size_bytes;
};

/// Enqueues a copy whose device side is `device` and whose host side is `host`.
CudaResult enqueue(const Copy& copy, CudaAddress device, const void* host,
                   CudaStreamHandle stream) {
  std::shared_ptr<Completion> done;
  {
    const std::lock_guard lock(state().mutex);
    CudaStreamState* const found = find_stream(stream);
    if (found == nullptr) return CudaResult::kInvalidHandle;
    const HostMemory kind = kind_of(host, copy.size_bytes);
    // A copy from two registrations is refused by the driver too.
    if (kind == HostMemory::kPartly || !is_allocated(device, copy.size_bytes)) {
      return CudaResult::kInvalidValue;
    }
    found->queue.submit([copy] { std::memcpy(copy.target, copy.source, copy.size_bytes); });
    if (kind == HostMemory::kPageable && state().setting("pageable_copies_wait") != 0) {
      done = found->queue.mark();
    }
  }
  if (done != nullptr) done->wait();
  return CudaResult::kSuccess;
}

void* pointer(CudaAddress address) { return reinterpret_cast<void*>(address); }

}  // namespace

bool fake_cuda::is_device_memory(CudaAddress address, std::size_t size_bytes) {
  return is_allocated(address, size_bytes) ||
         kind_of(pointer(address), size_bytes) == HostMemory::kRegistered;
}

TS_FAKE_EXPORT CudaResult cuMemGetInfo_v2(std::size_t* free_bytes, std::size_t* total_bytes) {
  const CudaResult early = enter("cuMemGetInfo_v2", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  *total_bytes = static_cast<std::size_t>(state().setting("total_bytes"));
  *free_bytes = *total_bytes - state().used_bytes;
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuMemAlloc_v2(CudaAddress* address, std::size_t size_bytes) {
  const CudaResult early = enter("cuMemAlloc_v2", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  if (size_bytes == 0) return CudaResult::kInvalidValue;
  const std::lock_guard lock(state().mutex);
  const auto total = static_cast<std::size_t>(state().setting("total_bytes"));
  if (size_bytes > total - state().used_bytes) return CudaResult::kOutOfMemory;
  // Aligned to 512 bytes, small pieces to no more.
  const std::size_t offset = size_bytes < kLarge ? kSmallAlignment : 0;
  void* const memory = std::aligned_alloc(kPage, round_up(size_bytes + offset, kPage));
  if (memory == nullptr) return CudaResult::kOutOfMemory;
  std::memset(memory, 0xCD, std::min(size_bytes + offset, kLarge));
  *address = reinterpret_cast<CudaAddress>(memory) + offset;
  context_stack().back()->allocations[*address] = {memory, size_bytes};
  state().used_bytes += size_bytes;
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuMemFree_v2(CudaAddress address) {
  const CudaResult early = enter("cuMemFree_v2", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  for (const auto& [device, context] : state().contexts) {
    const auto found = context->allocations.find(address);
    if (found == context->allocations.end()) continue;
    state().used_bytes -= found->second.size_bytes;
    std::free(found->second.memory);
    context->allocations.erase(found);
    return CudaResult::kSuccess;
  }
  return CudaResult::kInvalidValue;
}

TS_FAKE_EXPORT CudaResult cuMemHostRegister_v2(void* data, std::size_t size_bytes,
                                               unsigned int flags) {
  const CudaResult early = enter("cuMemHostRegister_v2", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  if (size_bytes == 0) return CudaResult::kInvalidValue;
  if ((flags & ~kCudaHostRegisterReadOnly) !=
      (kCudaHostRegisterPortable | kCudaHostRegisterDeviceMap)) {
    return CudaResult::kInvalidValue;
  }
  if ((flags & kCudaHostRegisterReadOnly) == 0 && !is_writable(data)) {
    return CudaResult::kInvalidValue;
  }
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  if (overlaps_registered_pages(begin, size_bytes)) {
    return CudaResult::kHostMemoryAlreadyRegistered;
  }
  if (static_cast<long long>(size_bytes) > state().setting("most_registered_bytes")) {
    return static_cast<CudaResult>(state().setting("registration_refusal"));
  }
  if ((flags & kCudaHostRegisterReadOnly) != 0) touch(data, size_bytes);
  state().registrations[begin] = size_bytes;
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuMemHostUnregister(void* data) {
  const CudaResult early = enter("cuMemHostUnregister", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  const auto erased = state().registrations.erase(reinterpret_cast<std::uintptr_t>(data));
  return erased == 0 ? CudaResult::kHostMemoryNotRegistered : CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuMemHostGetDevicePointer_v2(CudaAddress* address, void* data,
                                                       unsigned int flags) {
  const CudaResult early = enter("cuMemHostGetDevicePointer_v2", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  if (flags != 0 || kind_of(data, 1) != HostMemory::kRegistered) return CudaResult::kInvalidValue;
  *address = reinterpret_cast<CudaAddress>(data);
  return CudaResult::kSuccess;
}

TS_FAKE_EXPORT CudaResult cuMemcpyHtoDAsync_v2(CudaAddress target, const void* source,
                                               std::size_t size_bytes, CudaStreamHandle stream) {
  const CudaResult early = enter("cuMemcpyHtoDAsync_v2", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  return enqueue({pointer(target), source, size_bytes}, target, source, stream);
}

TS_FAKE_EXPORT CudaResult cuMemcpyDtoHAsync_v2(void* target, CudaAddress source,
                                               std::size_t size_bytes, CudaStreamHandle stream) {
  const CudaResult early = enter("cuMemcpyDtoHAsync_v2", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  return enqueue({target, pointer(source), size_bytes}, source, target, stream);
}

TS_FAKE_EXPORT CudaResult cuMemsetD8Async(CudaAddress target, unsigned char value,
                                          std::size_t size_bytes, CudaStreamHandle stream) {
  const CudaResult early = enter("cuMemsetD8Async", Needs::kContext);
  if (early != CudaResult::kSuccess) return early;
  const std::lock_guard lock(state().mutex);
  CudaStreamState* const found = find_stream(stream);
  if (found == nullptr) return CudaResult::kInvalidHandle;
  if (!is_allocated(target, size_bytes)) return CudaResult::kInvalidValue;
  found->queue.submit([=] { std::memset(pointer(target), value, size_bytes); });
  return CudaResult::kSuccess;
}

#include "device/cuda_memory.h"

#include <bit>
#include <string>

#include "base/log.h"
#include "base/units.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// Results by which a driver says that it does not pin these bytes, not that something broke. The
/// driver has no last error that would stay behind. The runtime has one, but latches results of its
/// own functions alone ("produced by any of the runtime calls", says cudaGetLastError), so torch
/// does not trip over a refusal here as it does over one of cudaHostRegister:
/// https://github.com/vllm-project/vllm/pull/50070
bool refuses(CudaResult result) {
  switch (result) {
    case CudaResult::kInvalidValue:  // also memory that is mapped read-only
    case CudaResult::kOutOfMemory:
    case CudaResult::kOperatingSystem:
    case CudaResult::kHostMemoryAlreadyRegistered:
    case CudaResult::kNotPermitted:
    case CudaResult::kNotSupported:
      return true;
    default:
      return false;
  }
}

BudgetError no_memory(const CudaContext& context, std::uint64_t size_bytes) {
  const CudaMemorySize size = cuda_memory_size(context);
  return {context.description() + ": no memory for " + format_size(size_bytes) + ": " +
              format_size(size.free_bytes) + " of " + format_size(size.total_bytes) +
              " are free; lower the budget, or end what else uses the GPU",
          size_bytes, size.free_bytes};
}

}  // namespace

CudaMemorySize cuda_memory_size(const CudaContext& context) {
  const CudaContext::Current current(context);
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  context.check(context.driver().cuMemGetInfo_v2(&free_bytes, &total_bytes), "cuMemGetInfo_v2");
  return {free_bytes, total_bytes};
}

CudaMemory::CudaMemory(const CudaContext& context, std::uint64_t size_bytes)
    : context_(context), size_bytes_(size_bytes) {
  taken_ = take(size_bytes);
  if (taken_ % kGroupAlignment == 0) return;
  // Large pieces come aligned to 2 MiB and are not to cost a byte more; small ones come at 512.
  give_back();
  taken_ = take(size_bytes + kGroupAlignment - 1);
}

CudaMemory::~CudaMemory() { give_back(); }

std::byte* CudaMemory::data() const noexcept {
  return std::bit_cast<std::byte*>(align_up(taken_, kGroupAlignment));
}

CudaAddress CudaMemory::take(std::uint64_t taken_bytes) const {
  const CudaContext::BesideCaptures current(context_);
  CudaAddress address = 0;
  const CudaResult result = context_.driver().cuMemAlloc_v2(&address, taken_bytes);
  if (result == CudaResult::kOutOfMemory) throw no_memory(context_, size_bytes_);
  context_.check(result, "cuMemAlloc_v2", taken_bytes);
  return address;
}

void CudaMemory::give_back() const noexcept {
  context_.release_in("cuMemFree_v2", [this] { return context_.driver().cuMemFree_v2(taken_); });
}

std::unique_ptr<CudaHostRegistration> CudaHostRegistration::try_create(const CudaContext& context,
                                                                       std::span<std::byte> bytes) {
  return try_create_with(context, bytes, 0);
}

std::unique_ptr<CudaHostRegistration> CudaHostRegistration::try_create_source(
    const CudaContext& context, std::span<const std::byte> bytes) {
  return try_create_with(context, {const_cast<std::byte*>(bytes.data()), bytes.size()},
                         kCudaHostRegisterReadOnly);
}

std::unique_ptr<CudaHostRegistration> CudaHostRegistration::try_create_with(
    const CudaContext& context, std::span<std::byte> bytes, unsigned int more_flags) {
  std::unique_ptr<CudaHostRegistration> made(new CudaHostRegistration(context, nullptr));
  const CudaContext::BesideCaptures current(context);
  const CudaDriver& driver = context.driver();
  const CudaResult result = driver.cuMemHostRegister_v2(
      bytes.data(), bytes.size(),
      kCudaHostRegisterPortable | kCudaHostRegisterDeviceMap | more_flags);
  if (refuses(result)) {
    log(LogLevel::kInfo, context.description() + ": " + format_size(bytes.size()) +
                             " of host memory are not pinned: " + describe_result(driver, result));
    return nullptr;
  }
  context.check(result, "cuMemHostRegister_v2", bytes.size());
  made->data_ = bytes.data();
  context.check(driver.cuMemHostGetDevicePointer_v2(&made->address_, made->data_, 0),
                "cuMemHostGetDevicePointer_v2", bytes.size());
  return made;
}

CudaHostRegistration::~CudaHostRegistration() {
  if (data_ == nullptr) return;
  context_.release_in("cuMemHostUnregister",
                      [this] { return context_.driver().cuMemHostUnregister(data_); });
}

std::byte* CudaHostRegistration::device_address() const noexcept {
  return std::bit_cast<std::byte*>(address_);
}

}  // namespace tensorstream

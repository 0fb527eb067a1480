// CudaDevice's memory, and host memory that it reads without staging.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "device/cuda_context.h"
#include "device/device.h"

namespace tensorstream {

/// What the driver says of a device's memory.
struct CudaMemorySize {
  std::uint64_t free_bytes = 0;
  std::uint64_t total_bytes = 0;
};
/// Raises CudaError.
CudaMemorySize cuda_memory_size(const CudaContext& context);

/// Owned memory of a GPU, at a multiple of kGroupAlignment. The context outlives it; nothing that
/// is enqueued uses it when it goes.
class CudaMemory final : public DeviceMemory {
 public:
  /// Raises BudgetError where the device has not so much, CudaError for anything else.
  CudaMemory(const CudaContext& context, std::uint64_t size_bytes);
  ~CudaMemory() override;
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;

  std::byte* data() const noexcept override;
  std::uint64_t size_bytes() const noexcept override { return size_bytes_; }

 private:
  CudaAddress take(std::uint64_t taken_bytes) const;
  void give_back() const noexcept;

  const CudaContext& context_;
  std::uint64_t size_bytes_;
  CudaAddress taken_ = 0;  // as the driver gave it
};

/// Pinned host memory. The context outlives it.
class CudaHostRegistration final : public HostRegistration {
 public:
  /// Null where the driver or the system refuses to pin `bytes`, which is logged. Raises CudaError
  /// for anything else.
  static std::unique_ptr<CudaHostRegistration> try_create(const CudaContext& context,
                                                          std::span<std::byte> bytes);
  /// As try_create(), of memory that this process may only read.
  static std::unique_ptr<CudaHostRegistration> try_create_source(const CudaContext& context,
                                                                 std::span<const std::byte> bytes);
  ~CudaHostRegistration() override;
  CudaHostRegistration(const CudaHostRegistration&) = delete;
  CudaHostRegistration& operator=(const CudaHostRegistration&) = delete;

  std::byte* device_address() const noexcept override;

 private:
  static std::unique_ptr<CudaHostRegistration> try_create_with(const CudaContext& context,
                                                               std::span<std::byte> bytes,
                                                               unsigned int more_flags);
  CudaHostRegistration(const CudaContext& context, std::byte* data)
      : context_(context), data_(data) {}

  const CudaContext& context_;
  std::byte* data_;  // null until registered
  CudaAddress address_ = 0;
};

}  // namespace tensorstream

// CudaDevice's streams: its own, and those that calling code computes on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <span>

#include "base/mutex.h"
#include "device/checking.h"
#include "device/cuda_context.h"
#include "device/device.h"

namespace tensorstream {

/// How a stream is treated in checking mode, and not at all otherwise.
struct CudaStreamChecks {
  Checking checking = Checking::kOff;
  std::uint64_t seed = 0;
  std::uint32_t longest_delay_us = 0;
};

/// How many threads a launch has.
struct CudaGrid {
  std::uint32_t blocks_x = 1;
  std::uint32_t blocks_y = 1;
  std::uint32_t threads = 32;  // of a block
};

/// A stream of the driver. The context outlives it. Thread-safe.
class CudaStream final : public Stream {
 public:
  /// Makes a stream that the default streams do not wait for. Raises CudaError.
  CudaStream(const CudaContext& context, const CudaStreamChecks& checks);
  /// The stream of somebody else, who ends it.
  CudaStream(const CudaContext& context, const CudaStreamChecks& checks, CudaStreamHandle handle);
  /// Finishes the work of a stream of its own.
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  void copy_to_device(std::byte* target, const std::byte* source,
                      std::uint64_t size_bytes) override;
  void copy_to_host(std::byte* target, const std::byte* source, std::uint64_t size_bytes) override;
  void wait(const Event& event) override;
  void record(Event& event) override;
  void run(std::function<void()> callback) override;
  void synchronize() override;
  bool is_capturing() const override;
  /// The default stream, whose handle is 0.
  bool lasts() const noexcept override { return handle_ == nullptr; }
  /// The driver knows no rights within a process.
  void set_access(std::byte* /*data*/, std::uint64_t /*size_bytes*/, Access /*access*/) override {}
  void poison(std::byte* data, std::uint64_t size_bytes) override;

  /// Enqueues a kernel of the stream's context; `arguments` point to its arguments, which are
  /// copied.
  void launch(CudaFunctionHandle function, const CudaGrid& grid, std::span<void*> arguments);

  /// `stream` as one of `context`. Raises ConfigError where it is not.
  static CudaStream& of(Stream& stream, const CudaContext& context);

 private:
  enum class Owner { kThis, kCaller };

  /// Enqueues a random sleep, in checking mode, with the context current.
  void delay();
  std::uint32_t next_delay_us();

  // Constant after construction.
  const CudaContext& context_;
  const CudaStreamChecks checks_;
  const Owner owner_;
  CudaStreamHandle handle_ = nullptr;

  // Guarded by mutex_.
  Mutex mutex_;
  std::mt19937_64 random_ TS_GUARDED_BY(mutex_);
};

}  // namespace tensorstream

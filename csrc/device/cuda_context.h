// A GPU's primary context, held, and the way every call of the driver goes.
#pragma once

#include <atomic>
#include <cstdint>
#include <source_location>
#include <string>

#include "platform/cuda_driver.h"

namespace tensorstream {

/// Holds the primary context of one GPU, which torch's runtime shares. Thread-safe; outlives all
/// that is made in it.
class CudaContext {
 public:
  /// `index` is below the driver's count of devices. Raises CudaError.
  CudaContext(const CudaDriver& driver, int index);
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  const CudaDriver& driver() const noexcept { return driver_; }
  CudaOrdinal ordinal() const noexcept { return ordinal_; }
  /// "cuda:0".
  const std::string& name() const noexcept { return name_; }
  /// "0000:0F:00.0".
  const std::string& pci_bus_id() const noexcept { return pci_bus_id_; }
  /// "device cuda:0 (NVIDIA H100 80GB HBM3, 0000:0f:00.0)".
  const std::string& description() const noexcept { return description_; }

  /// Raises CudaError unless `result`, of the driver's function `call`, is success. `size_bytes` is
  /// for the message.
  void check(CudaResult result, const char* call, std::uint64_t size_bytes = 0,
             std::source_location where = std::source_location::current()) const;
  /// As check(), for destructors: logs.
  void log_failure(CudaResult result, const char* call) const noexcept;

  /// Makes the context the calling thread's for a scope; what was current before is so again after
  /// it.
  class Current {
   public:
    /// Raises CudaError.
    explicit Current(const CudaContext& context,
                     std::source_location where = std::source_location::current());
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    const CudaContext& context_;
  };

  /// As Current, for calls that wait, or take or give memory: a capture of any thread's in CUDA's
  /// global mode, torch's usual one, forbids them to the process and would be lost by them, though
  /// they have no part in it.
  class BesideCaptures {
   public:
    /// Raises CudaError.
    explicit BesideCaptures(const CudaContext& context,
                            std::source_location where = std::source_location::current());
    ~BesideCaptures();
    BesideCaptures(const BesideCaptures&) = delete;
    BesideCaptures& operator=(const BesideCaptures&) = delete;

   private:
    const CudaContext& context_;
    const Current current_;
    int mode_ = kCudaCaptureModeRelaxed;  // the thread's, which it is to have again
  };

  /// Calls `release()`, the driver's function `call`, in the context and beside captures; logs
  /// where either fails. Does nothing in a forked child, where the driver must not be called: what
  /// is to be released is its parent's.
  template <typename Release>
  void release_in(const char* call, const Release& release) const noexcept {
    if (!try_push()) return;
    int mode = kCudaCaptureModeRelaxed;
    exchange_mode(mode);
    log_failure(release(), call);
    exchange_mode(mode);
    pop();
  }

 private:
  void exchange_mode(int& mode) const noexcept;
  bool try_push() const noexcept;
  void pop() const noexcept;

  // Constant after construction.
  const std::int64_t process_;
  const CudaDriver driver_;
  std::string name_;
  std::string pci_bus_id_;
  std::string description_;
  CudaOrdinal ordinal_ = 0;
  CudaContextHandle handle_ = nullptr;

  // Own synchronisation.
  mutable std::atomic<bool> said_lost_ = false;
};

}  // namespace tensorstream

// A device whose memory fails on order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>

#include "base/units.h"
#include "device/device.h"
#include "platform/mapping.h"
#include "tensorstream/error.h"

namespace tensorstream {

/// Gives host memory, fails its n-th allocation, and tells when memory goes.
class FakeDevice final : public Device {
 public:
  /// The number, from 1, of the allocation that raises BudgetError; 0 for none.
  int failing_allocation = 0;
  /// Added to each address that is handed out.
  std::uint64_t misalignment_bytes = 0;
  /// Called when memory of so many bytes goes.
  std::function<void(std::uint64_t)> on_free = [](std::uint64_t) {};

  int allocations() const noexcept { return allocations_; }
  std::uint64_t live_bytes() const noexcept { return live_bytes_; }

  std::string name() const override { return "fake"; }
  std::uint64_t total_bytes() const override { return 1_GiB; }
  std::uint64_t free_bytes() const override { return 1_GiB - live_bytes_; }
  bool host_accessible() const noexcept override { return true; }
  std::unique_ptr<DeviceMemory> allocate(std::uint64_t size_bytes) override {
    if (++allocations_ == failing_allocation) {
      throw BudgetError("fake: no memory", size_bytes, live_bytes_);
    }
    live_bytes_ += size_bytes;
    return std::make_unique<Memory>(*this, size_bytes);
  }
  std::unique_ptr<Stream> create_stream() override { throw std::logic_error("no streams"); }
  Stream& caller_stream() override { throw std::logic_error("no streams"); }
  Stream& stream_of(std::uintptr_t) override { throw std::logic_error("no streams"); }
  std::unique_ptr<Event> create_event() override { throw std::logic_error("no events"); }
  std::unique_ptr<HostRegistration> try_register_host(std::span<std::byte>) override {
    throw std::logic_error("no registrations");
  }

 private:
  class Memory final : public DeviceMemory {
   public:
    Memory(FakeDevice& device, std::uint64_t size_bytes)
        : device_(device),
          size_bytes_(size_bytes),
          mapping_(Mapping::anonymous(size_bytes + device.misalignment_bytes)),
          data_(mapping_.data() + device.misalignment_bytes) {}
    ~Memory() override {
      device_.live_bytes_ -= size_bytes_;
      device_.on_free(size_bytes_);
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    std::byte* data() const noexcept override { return data_; }
    std::uint64_t size_bytes() const noexcept override { return size_bytes_; }

   private:
    FakeDevice& device_;
    std::uint64_t size_bytes_;
    Mapping mapping_;
    std::byte* data_;
  };

  int allocations_ = 0;
  std::uint64_t live_bytes_ = 0;
};

}  // namespace tensorstream

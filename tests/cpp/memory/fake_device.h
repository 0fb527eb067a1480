// A device whose memory and registrations fail on order.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/units.h"
#include "device/device.h"
#include "platform/mapping.h"
#include "tensorstream/error.h"

namespace tensorstream {

/// Gives host memory, fails its n-th allocation, refuses registrations from the n-th on, and tells
/// when memory goes.
class FakeDevice final : public Device {
 public:
  /// The number, from 1, of the allocation that raises BudgetError; 0 for none.
  int failing_allocation = 0;
  /// The number, from 1, of the first registration that is refused; 0 for none.
  int refused_registration = 0;
  std::optional<int> node;
  /// Added to each address that is handed out.
  std::uint64_t misalignment_bytes = 0;
  /// Called when memory of so many bytes goes.
  std::function<void(std::uint64_t)> on_free = [](std::uint64_t) {};

  int allocations() const noexcept { return allocations_; }
  std::uint64_t live_bytes() const noexcept { return live_bytes_; }
  /// What was asked to be registered, in order.
  const std::vector<std::span<std::byte>>& asked() const noexcept { return asked_; }
  int live_registrations() const noexcept { return live_registrations_; }

  std::string name() const override { return "fake"; }
  std::uint64_t total_bytes() const override { return 1_GiB; }
  std::uint64_t free_bytes() const override { return 1_GiB - live_bytes_; }
  bool host_accessible() const noexcept override { return true; }
  bool uses_foreign_memory() const noexcept override { return true; }
  std::optional<int> numa_node() const override { return node; }
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
  std::unique_ptr<HostRegistration> try_register_host(std::span<std::byte> bytes) override {
    asked_.push_back(bytes);
    const auto nth = static_cast<int>(asked_.size());
    if (refused_registration != 0 && nth >= refused_registration) return nullptr;
    return std::make_unique<Registration>(*this, bytes.data());
  }
  std::unique_ptr<HostRegistration> try_register_source(
      std::span<const std::byte> /*bytes*/) override {
    return nullptr;
  }
  /// Added to the addresses of the n-th registration's memory, n times: where kernels see it.
  static constexpr std::uint64_t kSeenAt = 1ULL << 52U;

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

  /// Reads its memory when it goes, so that memory which went before is a fault.
  class Registration final : public HostRegistration {
   public:
    Registration(FakeDevice& device, std::byte* data)
        : device_(device), data_(data), seen_at_(device.asked_.size() * kSeenAt) {
      ++device_.live_registrations_;
    }
    ~Registration() override {
      static_cast<void>(*static_cast<volatile std::byte*>(data_));
      --device_.live_registrations_;
    }
    Registration(const Registration&) = delete;
    Registration& operator=(const Registration&) = delete;

    std::byte* device_address() const noexcept override {
      return std::bit_cast<std::byte*>(std::bit_cast<std::uint64_t>(data_) + seen_at_);
    }

   private:
    FakeDevice& device_;
    std::byte* data_;
    std::uint64_t seen_at_;
  };

  int allocations_ = 0;
  int live_registrations_ = 0;
  std::vector<std::span<std::byte>> asked_;
  std::uint64_t live_bytes_ = 0;
};

}  // namespace tensorstream

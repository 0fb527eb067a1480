#include "device/host_device.h"

#include <atomic>
#include <optional>
#include <string>

#include "device/host_event.h"
#include "device/host_memory.h"
#include "device/host_stream.h"
#include "platform/process_memory.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// Host memory is this device's own already.
class OpenHostMemory final : public HostRegistration {
 public:
  explicit OpenHostMemory(std::byte* data) : data_(data) {}
  std::byte* device_address() const noexcept override { return data_; }

 private:
  std::byte* data_;
};

class HostDevice final : public Device {
 public:
  explicit HostDevice(const HostDeviceOptions& options)
      : options_(options), memory_(options.checking), caller_stream_(memory_, options.checking) {}

  std::string name() const override { return "cpu"; }
  std::uint64_t total_bytes() const override { return usable_ram_bytes(); }
  std::uint64_t free_bytes() const override { return available_ram_bytes(); }
  bool host_accessible() const noexcept override { return true; }
  bool uses_foreign_memory() const noexcept override { return options_.checking == Checking::kOff; }
  std::optional<int> numa_node() const override { return std::nullopt; }

  std::unique_ptr<DeviceMemory> allocate(std::uint64_t size_bytes) override {
    return memory_.allocate(size_bytes);
  }
  std::unique_ptr<Stream> create_stream() override {
    return std::make_unique<QueueStream>(memory_, options_, options_.seed + streams_made_++);
  }
  Stream& caller_stream() override { return caller_stream_; }
  Stream& stream_of(std::uintptr_t /*native_handle*/) override { return caller_stream_; }
  std::unique_ptr<Event> create_event() override { return std::make_unique<HostEvent>(); }
  std::unique_ptr<HostRegistration> try_register_host(std::span<std::byte> bytes) override {
    if (bytes.empty()) throw ConfigError("device cpu: a registration of 0 bytes was asked for");
    return std::make_unique<OpenHostMemory>(bytes.data());
  }
  std::unique_ptr<HostRegistration> try_register_source(std::span<const std::byte> bytes) override {
    return try_register_host({const_cast<std::byte*>(bytes.data()), bytes.size()});
  }

 private:
  // Constant after construction.
  const HostDeviceOptions options_;

  // Own synchronisation.
  HostMemory memory_;
  CallerStream caller_stream_;
  std::atomic<std::uint64_t> streams_made_ = 0;
};

}  // namespace

std::unique_ptr<Device> create_host_device(const HostDeviceOptions& options) {
  return std::make_unique<HostDevice>(options);
}

}  // namespace tensorstream

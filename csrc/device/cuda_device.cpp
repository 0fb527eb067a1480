#include "device/cuda_device.h"

#include <atomic>
#include <bit>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include "base/mutex.h"
#include "base/units.h"
#include "device/cuda_context.h"
#include "device/cuda_event.h"
#include "device/cuda_files.h"
#include "device/cuda_kernel.h"
#include "device/cuda_memory.h"
#include "device/cuda_stream.h"
#include "platform/numa.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

std::uint64_t total_bytes_of(const CudaContext& context) {
  std::size_t size_bytes = 0;
  context.check(context.driver().cuDeviceTotalMem_v2(&size_bytes, context.ordinal()),
                "cuDeviceTotalMem_v2");
  return size_bytes;
}

int attribute_of(const CudaContext& context, int attribute) {
  int value = 0;
  context.check(context.driver().cuDeviceGetAttribute(&value, attribute, context.ordinal()),
                "cuDeviceGetAttribute");
  return value;
}

/// As compilers call it: "sm_90".
std::string architecture_of(const CudaContext& context) {
  return "sm_" + std::to_string(attribute_of(context, kCudaAttributeComputeCapabilityMajor)) +
         std::to_string(attribute_of(context, kCudaAttributeComputeCapabilityMinor));
}

class CudaDevice final : public Device {
 public:
  CudaDevice(const CudaDriver& driver, const CudaDeviceOptions& options)
      : options_(options),
        context_(driver, options.index),
        total_bytes_(total_bytes_of(context_)),
        registers_host_memory_(attribute_of(context_, kCudaAttributeHostRegisterSupported) != 0),
        registers_sources_(attribute_of(context_, kCudaAttributeReadOnlyHostRegisterSupported) !=
                           0),
        numa_node_(numa_node_of_pci_device(context_.pci_bus_id(), "")),
        caller_stream_(context_, next_checks(), nullptr) {}

  std::string name() const override { return context_.name(); }
  std::uint64_t total_bytes() const override { return total_bytes_; }
  std::uint64_t free_bytes() const override { return cuda_memory_size(context_).free_bytes; }
  bool host_accessible() const noexcept override { return false; }
  bool uses_foreign_memory() const noexcept override { return false; }
  std::optional<int> numa_node() const override { return numa_node_; }

  std::unique_ptr<DeviceMemory> allocate(std::uint64_t size_bytes) override;
  std::unique_ptr<Stream> create_stream() override {
    return std::make_unique<CudaStream>(context_, next_checks());
  }
  Stream& caller_stream() override { return caller_stream_; }
  Stream& stream_of(std::uintptr_t native_handle) override;
  std::unique_ptr<Event> create_event() override { return std::make_unique<CudaEvent>(context_); }
  std::unique_ptr<HostRegistration> try_register_host(std::span<std::byte> bytes) override;
  std::unique_ptr<HostRegistration> try_register_source(std::span<const std::byte> bytes) override;

  CudaKernel kernel(const KernelSource& source, const char* function);
  /// `owner` keeps this device alive.
  std::shared_ptr<CudaFiles> open_files(const std::shared_ptr<Device>& owner) const;
  const CufilePlaces& cufile() const noexcept { return options_.cufile; }

 private:
  std::unique_ptr<CudaModule> load(const KernelSource& source) const;

  CudaStreamChecks next_checks() {
    return {options_.checking, options_.seed + streams_made_++, options_.longest_delay_us};
  }

  // Constant after construction.
  const CudaDeviceOptions options_;
  const CudaContext context_;
  const std::uint64_t total_bytes_;
  const bool registers_host_memory_;
  const bool registers_sources_;
  const std::optional<int> numa_node_;

  // Own synchronisation.
  std::atomic<std::uint64_t> streams_made_ = 0;
  CudaStream caller_stream_;

  // Guarded by mutex_.
  Mutex mutex_;
  std::map<unsigned long long, std::unique_ptr<CudaStream>> callers_by_id_ TS_GUARDED_BY(mutex_);

  // Guarded by modules_mutex_, under which kernels are compiled.
  Mutex modules_mutex_;
  std::map<std::vector<std::string>, std::unique_ptr<CudaModule>> modules_
      TS_GUARDED_BY(modules_mutex_);  // by the source's name and its options
};

std::unique_ptr<DeviceMemory> CudaDevice::allocate(std::uint64_t size_bytes) {
  if (size_bytes == 0) {
    throw ConfigError(context_.description() + ": an allocation of 0 bytes was asked for");
  }
  if (size_bytes > total_bytes_) {
    throw BudgetError(context_.description() + ": no memory for " + format_size(size_bytes) +
                          ": it has " + format_size(total_bytes_) + " in all",
                      size_bytes, total_bytes_);
  }
  return std::make_unique<CudaMemory>(context_, size_bytes);
}

Stream& CudaDevice::stream_of(std::uintptr_t native_handle) {
  if (native_handle == 0 || native_handle == kCudaLegacyStream) return caller_stream_;
  const auto handle = std::bit_cast<CudaStreamHandle>(native_handle);
  const CudaContext::Current current(context_);
  // By its number, not its handle: handles are used again for new streams, and the per-thread
  // stream has one handle for all threads; as one object, work of two streams would pass for
  // ordered.
  unsigned long long id = 0;
  // guard: stream-identity
  context_.check(context_.driver().cuStreamGetId(handle, &id), "cuStreamGetId");
  // end guard
  const MutexLock lock(mutex_);
  std::unique_ptr<CudaStream>& stream = callers_by_id_[id];
  if (stream == nullptr) stream = std::make_unique<CudaStream>(context_, next_checks(), handle);
  return *stream;
}

std::unique_ptr<HostRegistration> CudaDevice::try_register_host(std::span<std::byte> bytes) {
  if (bytes.empty()) {
    throw ConfigError(context_.description() + ": a registration of 0 bytes was asked for");
  }
  if (!registers_host_memory_) return nullptr;
  return CudaHostRegistration::try_create(context_, bytes);
}

std::unique_ptr<HostRegistration> CudaDevice::try_register_source(
    std::span<const std::byte> bytes) {
  if (bytes.empty()) {
    throw ConfigError(context_.description() + ": a registration of 0 bytes was asked for");
  }
  if (!registers_sources_) return nullptr;
  return CudaHostRegistration::try_create_source(context_, bytes);
}

CudaKernel CudaDevice::kernel(const KernelSource& source, const char* function) {
  std::vector<std::string> key = {source.name};
  key.insert(key.end(), source.options.begin(), source.options.end());
  const MutexLock lock(modules_mutex_);
  std::unique_ptr<CudaModule>& module = modules_[key];
  if (module == nullptr) module = load(source);
  return {context_, module->function(function)};
}

std::unique_ptr<CudaModule> CudaDevice::load(const KernelSource& source) const {
  const NvrtcOutcome outcome = load_nvrtc(options_.compiler);
  if (const auto* const absence = std::get_if<NvrtcAbsence>(&outcome)) {
    throw UnsupportedError(context_.description() + ": " + source.name +
                           " cannot be compiled: " + absence->message);
  }
  const std::vector<std::byte> cubin =
      compile_cubin(std::get<Nvrtc>(outcome), source, architecture_of(context_));
  return std::make_unique<CudaModule>(context_, cubin);
}

std::shared_ptr<CudaFiles> CudaDevice::open_files(const std::shared_ptr<Device>& owner) const {
  const CudaContext::BesideCaptures current(context_);
  const CufileOutcome outcome = open_cufile(options_.cufile);
  if (const auto* const absence = std::get_if<CufileAbsence>(&outcome)) {
    throw UnsupportedError(context_.description() +
                           " cannot read files into its memory: " + absence->message);
  }
  return std::make_shared<CudaFiles>(owner, context_, std::get<Cufile>(outcome));
}

/// Raises UnsupportedError where there is no driver to call.
CudaDriver driver_for(const CudaDeviceOptions& options) {
  const CudaDriverOutcome outcome = options.driver_library == kCudaDriverLibrary
                                        ? system_cuda_driver()
                                        : load_cuda_driver(options.driver_library);
  if (const auto* const absence = std::get_if<CudaDriverAbsence>(&outcome)) {
    throw UnsupportedError("device cuda:" + std::to_string(options.index) +
                           " cannot be used: " + absence->message);
  }
  return std::get<CudaDriver>(outcome);
}

void check_index(const CudaDriver& driver, int index) {
  const std::string device = "device cuda:" + std::to_string(index);
  int count = 0;
  const CudaResult result = driver.cuDeviceGetCount(&count);
  if (result != CudaResult::kSuccess) {
    throw cuda_error(driver, result, {"cuDeviceGetCount", device});
  }
  if (count == 0) {
    throw UnsupportedError(device +
                           " cannot be used: the CUDA driver sees no device; look at "
                           "nvidia-smi and at CUDA_VISIBLE_DEVICES");
  }
  if (index < 0 || index >= count) {
    throw ConfigError(device + " is not there: " +
                      (count == 1 ? "there is 1 device, cuda:0"
                                  : "there are " + std::to_string(count) +
                                        " devices, cuda:0 to cuda:" + std::to_string(count - 1)));
  }
}

}  // namespace

std::unique_ptr<Device> create_cuda_device(const CudaDeviceOptions& options) {
  const CudaDriver driver = driver_for(options);
  check_index(driver, options.index);
  return std::make_unique<CudaDevice>(driver, options);
}

CudaKernel cuda_kernel(Device& device, const KernelSource& source, const char* function) {
  auto* const cuda_device = dynamic_cast<CudaDevice*>(&device);
  if (cuda_device == nullptr) {
    throw UnsupportedError("device " + device.name() + " runs no kernels: it is no GPU");
  }
  return cuda_device->kernel(source, function);
}

std::shared_ptr<CudaFiles> open_cuda_files(const std::shared_ptr<Device>& device) {
  const auto* const cuda_device = dynamic_cast<CudaDevice*>(device.get());
  if (cuda_device == nullptr) {
    throw UnsupportedError("device " + device->name() +
                           " has no memory that files could be read straight into: it is no GPU");
  }
  return cuda_device->open_files(device);
}

std::string why_no_peer_to_peer(const Device& device) {
  const auto* const cuda_device = dynamic_cast<const CudaDevice*>(&device);
  if (cuda_device == nullptr) return "device " + device.name() + " is no GPU";
  return has_nvidia_fs(cuda_device->cufile()) ? "" : "nvidia-fs is not loaded";
}

}  // namespace tensorstream

// The devices that every test of memory for devices runs on.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "device/cuda_device.h"
#include "device/gpu_required.h"
#include "device/host_device.h"
#include "device/real_cuda.h"
#include "fake_cuda/fake_cuda.h"

namespace tensorstream {

/// A kind of device under test.
struct MemoryDeviceKind {
  std::string name;
  std::function<std::unique_ptr<Device>()> create;
  bool pins = true;
  /// Why there is no such device here; nothing where there is one.
  std::function<std::optional<std::string>()> absent = [] { return std::nullopt; };
  /// Called when a test's device is gone.
  std::function<void()> after = [] {};
};

inline std::ostream& operator<<(std::ostream& out, const MemoryDeviceKind& kind) {
  return out << kind.name;
}

inline std::vector<MemoryDeviceKind> host_kinds() {
  const auto kind = [](const std::string& name, const HostDeviceOptions& options) {
    return MemoryDeviceKind{name, [options] { return create_host_device(options); }};
  };
  return {kind("Unchecked", {.checking = Checking::kOff}),
          kind("Checked", {.checking = Checking::kOn, .longest_delay_us = 500})};
}

/// What a fake driver does that others need not do.
struct FakeHabits {
  bool pins = true;
  bool blocks = true;  // copies of pageable memory, and host functions for one another
};

inline MemoryDeviceKind fake_cuda_kind(const std::string& name, FakeHabits habits,
                                       CudaDeviceOptions options) {
  options.driver_library = FakeCuda::path();
  options.compiler = FakeCuda::compiler();
  const auto create = [habits, options] {
    const FakeCuda fake;
    fake.reset();
    fake.set("host_register_supported", habits.pins ? 1 : 0);
    fake.set("serial_host_functions", habits.blocks ? 1 : 0);
    fake.set("pageable_copies_wait", habits.blocks ? 1 : 0);
    return create_cuda_device(options);
  };
  const auto after = [] {
    const FakeCuda fake;
    EXPECT_EQ(fake.get("leaked"), 0);
    EXPECT_EQ(fake.held(), 0);
    EXPECT_EQ(fake.get("context_depth"), 0);
  };
  return {name, create, habits.pins, [] { return std::nullopt; }, after};
}

inline std::vector<MemoryDeviceKind> fake_cuda_kinds() {
  const CudaDeviceOptions checked = {.checking = Checking::kOn, .longest_delay_us = 500};
  return {fake_cuda_kind("Unchecked", {}, {}), fake_cuda_kind("Checked", {}, checked),
          fake_cuda_kind("CheckedAsynchronous", {.blocks = false}, checked),
          fake_cuda_kind("PinsNothing", {.pins = false}, checked),
          fake_cuda_kind("PinsNothingAsynchronous", {.pins = false, .blocks = false}, checked)};
}

inline std::vector<MemoryDeviceKind> real_cuda_kinds() {
  const auto kind = [](const std::string& name, const CudaDeviceOptions& options) {
    return MemoryDeviceKind{name, [options] { return create_cuda_device(options); }, true,
                            why_no_real_cuda};
  };
  return {kind("Unchecked", {.compiler = real_compiler()}),
          kind("Checked", {.checking = Checking::kOn, .compiler = real_compiler()})};
}

/// A test on each kind of device.
class OnMemoryDevice : public ::testing::TestWithParam<MemoryDeviceKind> {
 protected:
  void SetUp() override {
    const auto absent = GetParam().absent();
    if (absent && gpu_is_required()) FAIL() << *absent;
    if (absent) GTEST_SKIP() << *absent;
    device_ = GetParam().create();
  }
  void TearDown() override {
    device_.reset();
    GetParam().after();
  }

  /// Device memory that streams may touch.
  std::unique_ptr<DeviceMemory> allocate_open(std::uint64_t size_bytes) const {
    auto memory = device_->allocate(size_bytes);
    device_->caller_stream().set_access(memory->data(), size_bytes, Access::kReadWrite);
    device_->caller_stream().synchronize();
    return memory;
  }
  /// The bytes of device memory that no stream is writing.
  std::vector<std::byte> read(const std::byte* data, std::uint64_t size_bytes) const {
    std::vector<std::byte> bytes(size_bytes);
    device_->caller_stream().copy_to_host(bytes.data(), data, size_bytes);
    device_->caller_stream().synchronize();
    return bytes;
  }

  std::unique_ptr<Device> device_;
};

}  // namespace tensorstream

#define TS_ON_EACH_MEMORY_DEVICE(suite)                                               \
  INSTANTIATE_TEST_SUITE_P(HostDevice, suite, ::testing::ValuesIn(host_kinds()),      \
                           [](const auto& instance) { return instance.param.name; }); \
  INSTANTIATE_TEST_SUITE_P(FakeCuda, suite, ::testing::ValuesIn(fake_cuda_kinds()),   \
                           [](const auto& instance) { return instance.param.name; }); \
  INSTANTIATE_TEST_SUITE_P(RealCuda, suite, ::testing::ValuesIn(real_cuda_kinds()),   \
                           [](const auto& instance) { return instance.param.name; })

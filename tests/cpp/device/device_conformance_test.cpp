#include "device/device_conformance.h"

#include "device/cuda_device.h"
#include "device/host_device.h"
#include "device/real_cuda.h"
#include "fake_cuda/fake_cuda.h"

namespace tensorstream {
namespace {

std::vector<std::byte> read_host(Device& /*device*/, const std::byte* data,
                                 std::uint64_t size_bytes) {
  return {data, data + size_bytes};
}

DeviceKind host_device(const std::string& name, const HostDeviceOptions& options) {
  return {name, [options] { return create_host_device(options); }, read_host};
}

INSTANTIATE_TEST_SUITE_P(
    HostDevice, DeviceConformance,
    ::testing::Values(host_device("Unchecked", {.checking = Checking::kOff}),
                      host_device("Checked", {.checking = Checking::kOn}),
                      host_device("CheckedOtherSeed",
                                  {.checking = Checking::kOn, .seed = 7, .longest_delay_us = 1000}),
                      host_device("CheckedWithoutDelay",
                                  {.checking = Checking::kOn, .longest_delay_us = 0})),
    [](const auto& instance) { return instance.param.name; });

std::vector<std::byte> read_by_copy(Device& device, const std::byte* data,
                                    std::uint64_t size_bytes) {
  std::vector<std::byte> bytes(size_bytes);
  const auto stream = device.create_stream();
  stream->copy_to_host(bytes.data(), data, size_bytes);
  stream->synchronize();
  return bytes;
}

/// What a driver may do and need not.
enum class Habits {
  /// Host functions of all streams run one by one, copies of pageable memory block.
  kBlocking,
  kAsynchronous,
};

DeviceKind fake_cuda(const std::string& name, Habits habits, CudaDeviceOptions options) {
  options.driver_library = FakeCuda::path();
  const auto create = [habits, options] {
    const FakeCuda fake;
    fake.reset();
    fake.set("serial_host_functions", habits == Habits::kBlocking ? 1 : 0);
    fake.set("pageable_copies_wait", habits == Habits::kBlocking ? 1 : 0);
    return create_cuda_device(options);
  };
  const auto after = [] {
    const FakeCuda fake;
    EXPECT_EQ(fake.get("leaked"), 0);
    EXPECT_EQ(fake.held(), 0);
    EXPECT_EQ(fake.get("context_depth"), 0);
  };
  return {name, create, read_by_copy, [] { return std::nullopt; }, after};
}

INSTANTIATE_TEST_SUITE_P(
    FakeCuda, DeviceConformance,
    ::testing::Values(fake_cuda("Unchecked", Habits::kBlocking, {.checking = Checking::kOff}),
                      fake_cuda("UncheckedAsynchronous", Habits::kAsynchronous,
                                {.checking = Checking::kOff}),
                      fake_cuda("Checked", Habits::kBlocking, {.checking = Checking::kOn}),
                      fake_cuda("CheckedAsynchronous", Habits::kAsynchronous,
                                {.checking = Checking::kOn, .seed = 7, .longest_delay_us = 1000})),
    [](const auto& instance) { return instance.param.name; });

DeviceKind real_cuda(const std::string& name, const CudaDeviceOptions& options) {
  return {name, [options] { return create_cuda_device(options); }, read_by_copy, why_no_real_cuda};
}

INSTANTIATE_TEST_SUITE_P(RealCuda, DeviceConformance,
                         ::testing::Values(real_cuda("Unchecked", {.checking = Checking::kOff}),
                                           real_cuda("Checked", {.checking = Checking::kOn})),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace tensorstream

#include "device/device_conformance.h"
#include "device/host_device.h"

namespace tensorstream {
namespace {

std::vector<std::byte> read_host(const std::byte* data, std::uint64_t size_bytes) {
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

}  // namespace
}  // namespace tensorstream

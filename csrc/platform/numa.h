// NUMA: which node's memory is near a device, and memory that comes from there.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "platform/mapping.h"

namespace tensorstream {

/// The node of the PCI device `bus_id` ("0000:0F:00.0", in capitals or not); nothing where the
/// system does not say or the device is near no node. `root` is put before /sys: a folder made by a
/// test, or empty.
std::optional<int> numa_node_of_pci_device(std::string_view bus_id, const std::string& root);

/// Has the pages of `mapping` that are not present yet come from `node` while it has room. A hint:
/// where the system does not take it, that is logged and no error.
void prefer_numa_node(const Mapping& mapping, int node) noexcept;

}  // namespace tensorstream

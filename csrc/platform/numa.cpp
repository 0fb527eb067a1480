#include "platform/numa.h"

#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <limits>

#include "base/log.h"
#include "platform/text_file.h"

namespace tensorstream {
namespace {

constexpr std::size_t kWordBits = sizeof(unsigned long) * CHAR_BIT;
constexpr std::size_t kMostNodes = 1024;  // what Linux is built for at most

bool is_bus_id(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789abcdef:.") == std::string_view::npos &&
         text.find("..") == std::string_view::npos;
}

}  // namespace

std::optional<int> numa_node_of_pci_device(std::string_view bus_id, const std::string& root) {
  std::string name(bus_id);  // drivers write capitals, the system does not
  std::ranges::transform(name, name.begin(), [](char c) {
    return c >= 'A' && c <= 'F' ? static_cast<char>(c + 32) : c;
  });
  if (!is_bus_id(name)) return std::nullopt;
  const auto text = read_text_file(root + "/sys/bus/pci/devices/" + name + "/numa_node");
  const auto node = text ? leading_number(*text) : std::nullopt;  // -1 is no number: no node
  if (!node || *node > std::numeric_limits<int>::max()) return std::nullopt;
  return static_cast<int>(*node);
}

void prefer_numa_node(const Mapping& mapping, int node) noexcept {
  if (mapping.data() == nullptr) return;
  std::array<unsigned long, kMostNodes / kWordBits> nodes{};
  int error = EINVAL;
  if (node >= 0 && static_cast<std::size_t>(node) < kMostNodes) {
    const auto bit = static_cast<std::size_t>(node);
    nodes[bit / kWordBits] |= 1UL << (bit % kWordBits);
    // The kernel reads one bit less than it is told of.
    const unsigned long told_bits = kMostNodes + 1;
    if (::syscall(SYS_mbind, mapping.data(), mapping.size_bytes(), MPOL_PREFERRED, nodes.data(),
                  told_bits, 0UL) == 0) {
      return;
    }
    error = errno;  // EPERM: a container without CAP_SYS_NICE; ENOSYS: a kernel without NUMA
  }
  std::array<char, 128> message{};
  std::snprintf(message.data(), message.size(),
                "memory of %llu bytes cannot prefer NUMA node %d: errno %d",
                static_cast<unsigned long long>(mapping.size_bytes()), node, error);
  log(LogLevel::kDebug, message.data());
}

}  // namespace tensorstream

#include "platform/cgroup.h"

#include <algorithm>
#include <limits>
#include <sstream>
#include <string_view>

#include "platform/text_file.h"

namespace tensorstream {
namespace {

/// The file names of one version of control groups.
struct Version {
  const char* limit;
  const char* usage;
  std::string_view reclaimable;
  std::string_view file;
};

constexpr Version kV1 = {"/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_inactive_file ",
                         "total_cache "};
constexpr Version kV2 = {"/memory.max", "/memory.current", "inactive_file ", "file "};

/// v1 says "no limit" by the largest number of whole pages.
constexpr std::uint64_t kNoLimit = 1ULL << 62U;

bool lists_memory(std::string_view controllers) {
  while (!controllers.empty()) {
    const std::string_view name = controllers.substr(0, controllers.find(','));
    if (name == "memory") return true;
    controllers.remove_prefix(std::min(controllers.size(), name.size() + 1));
  }
  return false;
}

void tighten(CgroupMemory& tightest, const Version& version, const std::string& folder) {
  const auto limit_text = read_text_file(folder + version.limit);
  const auto limit = limit_text ? leading_number(*limit_text) : std::nullopt;
  if (!limit || *limit >= kNoLimit) return;
  tightest.limit_bytes = std::min(tightest.limit_bytes, *limit);

  const auto usage_text = read_text_file(folder + version.usage);
  const auto usage = usage_text ? leading_number(*usage_text) : std::nullopt;
  const auto statistics = read_text_file(folder + "/memory.stat");
  const auto reclaimable =
      statistics ? number_after(*statistics, version.reclaimable) : std::nullopt;
  const std::uint64_t used = usage.value_or(0);
  const std::uint64_t held = used - std::min(used, reclaimable.value_or(0));
  const std::uint64_t left = *limit - std::min(*limit, held);
  if (left >= tightest.left_bytes) return;
  tightest.left_bytes = left;
  const auto file = statistics ? number_after(*statistics, version.file) : std::nullopt;
  tightest.file_bytes = file.value_or(*limit);
}

/// Looks at `group` below `mount` and at each of its ancestors. A container often sees its own
/// group as the mount and a name from outside: folders that are not there say nothing, and the
/// mount itself is always looked at.
void tighten_upwards(CgroupMemory& tightest, const Version& version, const std::string& mount,
                     std::string group) {
  if (group.find("..") != std::string::npos) group.clear();
  while (!group.empty() && group != "/") {
    tighten(tightest, version, mount + group);
    group.resize(group.rfind('/'));
  }
  tighten(tightest, version, mount);
}

}  // namespace

std::optional<CgroupMemory> cgroup_memory(const std::string& root) {
  const auto text = read_text_file(root + "/proc/self/cgroup");
  if (!text) return std::nullopt;
  constexpr std::uint64_t kLargest = std::numeric_limits<std::uint64_t>::max();
  CgroupMemory tightest{.limit_bytes = kLargest, .left_bytes = kLargest};
  const std::string mounts = root + "/sys/fs/cgroup";

  std::istringstream lines(*text);
  for (std::string line; std::getline(lines, line);) {  // "4:memory:/a/b", "0::/a/b"
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (!group.empty() && group.front() != '/') continue;
    if (lists_memory(controllers)) tighten_upwards(tightest, kV1, mounts + "/memory", group);
    if (!controllers.empty()) continue;
    tighten_upwards(tightest, kV2, mounts, group);
    tighten_upwards(tightest, kV2, mounts + "/unified", group);
  }
  if (tightest.limit_bytes == kLargest) return std::nullopt;
  return tightest;
}

}  // namespace tensorstream

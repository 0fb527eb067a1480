#include "platform/process_memory.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "base/units.h"
#include "platform/cgroup.h"
#include "platform/mapping.h"
#include "platform/memory_map.h"
#include "platform/text_file.h"

namespace tensorstream {
namespace {

/// The number behind `key` in a file of /proc that counts in KiB.
std::optional<std::uint64_t> proc_kib(const std::string& text, std::string_view key) {
  const auto kib = number_after(text, key);
  return kib ? checked_mul(*kib, 1_KiB) : std::nullopt;
}

std::uint64_t physical_ram_bytes() {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  return pages < 0 ? 0 : static_cast<std::uint64_t>(pages) * page_size_bytes();
}

// 0 for not known. A fork's handler takes no argument.
// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables)
std::atomic<std::int64_t> known_process_id = 0;

}  // namespace

std::optional<FileBacking> find_file_backing(const void* address, std::uint64_t size_bytes) {
  return find_file_backing(address, size_bytes, ProcessFiles{});
}

std::optional<ResidentSize> resident_size() {
  const auto status = read_text_file("/proc/self/status");
  if (!status) return std::nullopt;
  const auto now = proc_kib(*status, "VmRSS:");
  const auto peak = proc_kib(*status, "VmHWM:");
  if (!now || !peak) return std::nullopt;
  return ResidentSize{.now_bytes = *now, .peak_bytes = *peak};
}

// It is asked for at each lease, and glibc makes a system call of it.
std::int64_t process_id() noexcept {
  static const int refused =
      ::pthread_atfork(nullptr, nullptr, [] { known_process_id = ::getpid(); });
  if (refused != 0) return ::getpid();
  if (known_process_id == 0) known_process_id = ::getpid();
  return known_process_id;
}

std::uint64_t usable_ram_bytes() {
  const auto group = cgroup_memory("");
  const std::uint64_t machine = physical_ram_bytes();
  return group ? std::min(machine, group->limit_bytes) : machine;
}

std::uint64_t available_ram_bytes() { return ram_room().available_bytes; }

RamRoom ram_room() {
  const auto information = read_text_file("/proc/meminfo");
  const auto number = [&](std::string_view key) {
    return information ? proc_kib(*information, key) : std::nullopt;
  };
  const std::uint64_t machine = number("MemAvailable:").value_or(physical_ram_bytes());
  const auto group = cgroup_memory("");
  if (group && group->left_bytes < machine) return {group->left_bytes, group->file_bytes};
  return {machine, number("Cached:").value_or(physical_ram_bytes())};
}

}  // namespace tensorstream

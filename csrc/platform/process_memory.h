// What the operating system says of this process's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "platform/file.h"

namespace tensorstream {

/// Where memory of this process comes from, when it is an unmodified part of a file.
struct FileBacking {
  std::string path;
  std::uint64_t offset_bytes = 0;
  /// Of the file at `path`, which is the one that is mapped.
  FileIdentity file = {};
};

/// Finds the file whose mapped, never modified bytes are [address, address + size_bytes). Nothing
/// for any other memory: anonymous, spanning two mappings, a deleted file, shared with others that
/// see what is written here, or with a page that was written (a private copy), as /proc/self/maps
/// and /proc/self/pagemap tell.
std::optional<FileBacking> find_file_backing(const void* address, std::uint64_t size_bytes);

/// Resident bytes of this process now and at its highest, file pages included (VmRSS and VmHWM);
/// nothing where /proc does not say.
struct ResidentSize {
  std::uint64_t now_bytes = 0;
  std::uint64_t peak_bytes = 0;
};
std::optional<ResidentSize> resident_size();

/// This process: another number after a fork.
std::int64_t process_id() noexcept;

/// Shares what has threads. They do not survive a fork, and a child can neither join them nor
/// destroy what they wait on: there it is left as it is.
template <typename Owner>
std::shared_ptr<Owner> share_at_home(std::unique_ptr<Owner> owner) {
  const auto end = [home = process_id()](Owner* ending) {
    if (home == process_id()) std::default_delete<Owner>()(ending);
  };
  return {owner.release(), end};
}

/// RAM that this process may use: the machine's, or its cgroup's limit (v1 and v2, the tightest of
/// the ancestors) where that is smaller.
std::uint64_t usable_ram_bytes();

/// RAM that is free for this process now: MemAvailable, or what is left of the cgroup's limit where
/// that is smaller.
std::uint64_t available_ram_bytes();

/// What available_ram_bytes() is of.
struct RamRoom {
  std::uint64_t available_bytes = 0;
  /// The page cache in the same bounds: of the machine, or of the cgroup that limits this process.
  /// What else the page cache has is charged to others, and takes nothing of what is available.
  std::uint64_t file_bytes = 0;
};
RamRoom ram_room();

}  // namespace tensorstream

#include "engine/backend_choice.h"

#include <algorithm>

#include "base/units.h"
#include "engine/model_plan.h"
#include "platform/file.h"
#include "platform/page_cache.h"

namespace tensorstream {
namespace {

/// What a pass does not find in the page cache once that has settled: `held_bytes` of the files
/// stay there whatever this process reads.
std::uint64_t missing_bytes(std::uint64_t read_bytes, std::uint64_t held_bytes,
                            std::uint64_t file_bytes) {
  if (file_bytes == 0) return read_bytes;
  const double share = static_cast<double>(held_bytes) / static_cast<double>(file_bytes);
  const auto held = static_cast<std::uint64_t>(static_cast<double>(read_bytes) * share);
  return read_bytes - std::min(read_bytes, held);
}

}  // namespace

CachedFiles cached_files(const std::vector<std::string>& paths) {
  CachedFiles files;
  files.in_ram = !paths.empty();
  for (const std::string& path : paths) {
    const File file = File::open_for_reading(path);
    files.file_bytes += file.size_bytes();
    files.cached_bytes += bytes_in_page_cache(file, 0, file.size_bytes());
    files.in_ram = files.in_ram && lies_in_ram(file);
  }
  return files;
}

BackendChoice choose_backend(const Plan& plan, ComputePlace place, const RamRoom& room,
                             const CachedFiles& files, const ProbeResult& gpudirect) {
  const bool on_host = place == ComputePlace::kHost;
  // What is packed takes less than it decodes to.
  const std::uint64_t read =
      on_host ? std::min(plan.streamed_bytes, files.file_bytes) : plan.disk_bytes;
  if (read == 0) return {FileBackend::kPread, "no pass reads files"};
  if (files.in_ram) return {FileBackend::kPread, "the files are in RAM"};
  const std::uint64_t own = on_host ? plan.resident_bytes + plan.arena_bytes : plan.home_bytes;
  const std::uint64_t left =
      default_budget_bytes(room.available_bytes - std::min(room.available_bytes, own));
  const std::string facts = "each pass reads " + format_size(read) +
                            ", and the page cache has room for " + format_size(left);
  if (read <= left) return {FileBackend::kPread, facts};
  // Of what it has, what is charged as this process's memory is goes as that fills.
  const std::uint64_t others = files.cached_bytes - std::min(files.cached_bytes, room.file_bytes);
  const std::string held = facts + ", but has " + format_size(files.cached_bytes) + " of the " +
                           format_size(files.file_bytes) + " of files, " + format_size(others) +
                           " charged to others";
  const bool settles = missing_bytes(read, others, files.file_bytes) <= left;
  if (others != 0 && settles) return {FileBackend::kCached, held};
  const std::string& why = others == 0 ? facts : held;
  if (on_host) return {FileBackend::kDirect, why};
  // Through host memory of cuFile's it is no quicker, and nobody asked for it.
  const bool proven = gpudirect.is_usable && gpudirect.is_peer_to_peer;
  if (proven) return {FileBackend::kGpudirect, why};
  return {FileBackend::kDirect, why + ", and not gpudirect: " + gpudirect.reason};
}

}  // namespace tensorstream

#include "engine/host_home.h"

#include <algorithm>

#include "engine/load.h"
#include "platform/processors.h"
#include "platform/threads.h"

namespace tensorstream {
namespace {

// More do not read a page cache faster, and a disk slower.
constexpr std::size_t kMostThreads = 8;

/// Writes what poison() does between tensors, whose bytes go to the place with theirs: a kernel
/// that reads beyond its weight gets no number that looks right.
void fill_gaps(HostHome& home, const Group& group, const GroupLayout& layout,
               const SourceTable& sources) {
  for (std::size_t i = 1; i < group.tensors.size(); ++i) {
    const std::uint64_t end =
        layout.offsets_bytes[i - 1] + sources.tensors()[group.tensors[i - 1]].size_bytes;
    const std::uint64_t next = layout.offsets_bytes[i];
    std::ranges::fill(home.bytes().subspan(end, next - end), std::byte{0xFF});
  }
}

}  // namespace

HostHome::HostHome(Device& device, const std::string& group, std::uint64_t size_bytes,
                   const PinnedMemoryOptions& options)
    : memory_(device, size_bytes, "the weights of '" + group + "' in host memory", options),
      bytes_(create_memory_reader("host memory of '" + group + "'", memory_.bytes(), nullptr)) {}

std::uint64_t HostHome::pinned_end(std::uint64_t offset_bytes) const noexcept {
  return memory_.is_pinned(offset_bytes, 1) ? memory_.piece_end(offset_bytes) : offset_bytes;
}

std::byte* HostHome::device_address(std::uint64_t offset_bytes,
                                    std::uint64_t size_bytes) const noexcept {
  if (!memory_.is_pinned(offset_bytes, size_bytes)) return nullptr;
  return memory_.device_address(offset_bytes);
}

std::shared_ptr<HostHome> make_home(Device& device, const Group& group, const GroupLayout& layout,
                                    const SourceTable& sources,
                                    const PinnedMemoryOptions& options) {
  auto home = std::make_shared<HostHome>(device, group.name, layout.size_bytes, options);
  fill_gaps(*home, group, layout, sources);
  Load load(0, Load::Reads::kInPlace);
  for (std::size_t i = 0; i < group.tensors.size(); ++i) {
    std::byte* target = home->bytes().data() + layout.offsets_bytes[i];
    for (const BoundExtent& extent : sources.extents(group.tensors[i])) {
      load.add_read(extent, target);
      target += extent.size_bytes;
    }
  }
  {
    const std::size_t count =
        load.is_large() ? std::min<std::size_t>(usable_processors(), kMostThreads) : 1;
    const auto helpers = start_helpers(count, "weights come home", [&] { load.read(); });
    load.read();
  }
  if (const std::exception_ptr error = load.error()) std::rethrow_exception(error);
  return home;
}

}  // namespace tensorstream

#include "engine/group_layout.h"

#include "base/units.h"
#include "tensorstream/error.h"

namespace tensorstream {
std::uint64_t taken_bytes(std::uint64_t size_bytes, std::uint64_t page_bytes) {
  return align_up(size_bytes, size_bytes >= page_bytes / 2 ? page_bytes : kGroupAlignment);
}

GroupLayout lay_out(const Group& group, std::span<const TensorSpec> tensors, ComputePlace place) {
  // Sizes stay far from overflow: a group is smaller than any address space.
  constexpr std::uint64_t kLargest = std::uint64_t{1} << 48U;
  GroupLayout layout;
  layout.offsets_bytes.reserve(group.tensors.size());
  std::uint64_t end = 0;
  for (const TensorId tensor : group.tensors) {
    if (tensor >= tensors.size()) {
      throw ConfigError("group '" + group.name + "' names tensor " + std::to_string(tensor) +
                        " of " + std::to_string(tensors.size()));
    }
    const std::uint64_t size = tensors[tensor].size_bytes;
    if (size > kLargest || end > kLargest) {
      throw ConfigError("group '" + group.name + "' is larger than any memory");
    }
    layout.offsets_bytes.push_back(end);
    const std::uint64_t room = size == 0 ? 0 : size + kCacheLineBytes - 1;
    end = align_up(end + room, kTensorAlignment);
  }
  const bool on_host = place == ComputePlace::kHost;
  layout.size_bytes = on_host ? align_up(end, kGroupAlignment) : taken_bytes(end, kDevicePageBytes);
  return layout;
}

void lie_as_in_model(GroupLayout& layout, const Group& group, std::span<const TensorSpec> tensors) {
  for (std::size_t i = 0; i < group.tensors.size(); ++i) {
    const TensorSpec& tensor = tensors[group.tensors[i]];
    if (tensor.line_offset_bytes >= kCacheLineBytes) {
      throw ConfigError("tensor '" + tensor.name + "' begins at byte " +
                        std::to_string(tensor.line_offset_bytes) + " of a cache line of " +
                        std::to_string(kCacheLineBytes));
    }
    layout.offsets_bytes[i] += tensor.line_offset_bytes;
  }
}

namespace {

/// What the group's files have of it, where some of that is frames.
std::optional<std::uint64_t> frame_bytes(const Group& group, std::span<const TensorSpec> tensors) {
  std::uint64_t sum = 0;
  bool has_frames = false;
  for (const TensorId id : group.tensors) {
    const TensorSpec& tensor = tensors[id];
    has_frames |= tensor.frame_bytes != 0;
    sum += tensor.frame_bytes != 0 ? tensor.frame_bytes : tensor.size_bytes;
  }
  return has_frames ? std::optional(sum) : std::nullopt;
}

}  // namespace

std::vector<GroupFootprint> footprints(std::span<const Group> groups,
                                       std::span<const TensorSpec> tensors, ComputePlace place) {
  std::vector<GroupFootprint> result;
  result.reserve(groups.size());
  for (const Group& group : groups) {
    result.push_back({group.name, lay_out(group, tensors, place).size_bytes, group.residency});
    result.back().frame_bytes = frame_bytes(group, tensors);
    result.back().tensors = group.tensors.size();
    // There groups are used where their sources are, or copied from there.
    if (place == ComputePlace::kHost) result.back().home = HomeState::kRefused;
  }
  return result;
}

void note_pinned(GroupFootprint& footprint) {
  const bool wants_home = footprint.coded_bytes || footprint.residency == Residency::kByRows;
  if (footprint.home == HomeState::kThere || wants_home) return;
  footprint.in_files = false;
  footprint.home = HomeState::kAtSource;
}

}  // namespace tensorstream

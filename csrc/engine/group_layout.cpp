#include "engine/group_layout.h"

#include "base/units.h"
#include "tensorstream/error.h"

namespace tensorstream {

GroupLayout lay_out(const Group& group, std::span<const TensorSpec> tensors) {
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
    end = align_up(end + size, kTensorAlignment);
  }
  layout.size_bytes = align_up(end, kGroupAlignment);
  return layout;
}

std::vector<GroupFootprint> footprints(std::span<const Group> groups,
                                       std::span<const TensorSpec> tensors) {
  std::vector<GroupFootprint> result;
  result.reserve(groups.size());
  for (const Group& group : groups) {
    result.push_back({group.name, lay_out(group, tensors).size_bytes, group.residency});
  }
  return result;
}

}  // namespace tensorstream

#include "engine/loaded_group.h"

#include <algorithm>

#include "base/units.h"
#include "engine/encoded_home.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// Tensors smaller than this are copied for less than a window costs.
constexpr std::uint64_t kSmallestWindowBytes = 4_MiB;

/// The file's own pages where they can be used without a copy of them; null elsewhere.
std::unique_ptr<FileWindow> window_of(const TensorSpec& tensor,
                                      const std::vector<BoundExtent>& extents) {
  if (extents.size() != 1 || extents[0].size_bytes < kSmallestWindowBytes) return nullptr;
  const BoundExtent& extent = extents[0];
  const std::uint64_t line_offset_bytes = extent.offset_bytes % kCacheLineBytes;
  if (line_offset_bytes != tensor.line_offset_bytes) return nullptr;  // guard: window-alignment
  try {
    return extent.reader->window(extent.offset_bytes, extent.size_bytes);
  } catch (const Error&) {  // no addresses left, or a file that changed: whoever reads it hears
    return nullptr;
  }
}

/// Whether `window` is of the file's part that the tensor is still made of.
bool shows(const FileWindow& window, const std::vector<BoundExtent>& extents) {
  return extents.size() == 1 && window.is_of(*extents[0].reader, extents[0].offset_bytes);
}

/// Whether the tensor is frames that the device copies by itself.
bool is_coded(const std::vector<BoundExtent>& extents) {
  if (extents.size() != 1) return false;
  const EncodedHome* const home = EncodedHome::of(*extents[0].reader);
  return home != nullptr && home->is_pinned();
}

}  // namespace

std::size_t LoadedGroup::make_windows(const SourceTable& sources, std::size_t most) {
  std::vector<std::unique_ptr<FileWindow>> made(tensors.size());
  std::size_t count = 0;
  for (std::size_t i = 0; i < tensors.size() && count < most; ++i) {
    made[i] = window_of(sources.tensors()[tensors[i]], sources.extents(tensors[i]));
    if (made[i] != nullptr) ++count;
  }
  if (count > 0) windows = std::move(made);
  return count;
}

bool LoadedGroup::drop_replaced_windows(const SourceTable& sources) {
  bool dropped = false;
  for (std::size_t i = 0; i < windows.size(); ++i) {
    if (windows[i] == nullptr || shows(*windows[i], sources.extents(tensors[i]))) continue;
    windows[i] = nullptr;
    dropped = true;
  }
  return dropped;
}

bool LoadedGroup::drop_lost_windows() noexcept {
  const auto lost = [](const auto& window) { return window != nullptr && window->is_lost(); };
  if (!std::ranges::any_of(windows, lost)) return false;
  dropped_windows = std::move(windows);
  windows.clear();
  return true;
}

std::uint64_t LoadedGroup::window_bytes() const noexcept {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < windows.size(); ++i) {
    if (windows[i] != nullptr) sum += windows[i]->mapped_bytes();
  }
  return sum;
}

std::exception_ptr LoadedGroup::close_windows() noexcept {
  std::exception_ptr changed;
  for (const auto& shown : windows) {
    if (shown == nullptr) continue;
    try {
      shown->check_unchanged();
    } catch (...) {
      changed = std::current_exception();
    }
    shown->close();
  }
  return changed;
}

FileWindow* GroupPlace::window(const LoadedGroup& group, std::size_t position) const {
  return uses_windows && !group.windows.empty() ? group.windows[position].get() : nullptr;
}

std::byte* GroupPlace::address(const LoadedGroup& group, std::size_t position) const {
  const FileWindow* const shown = window(group, position);
  return shown != nullptr ? shown->data() : data + group.layout.offsets_bytes[position];
}

void GroupPlace::add_to(Load& load, const LoadedGroup& group, const SourceTable& sources,
                        std::uint64_t piece_bytes) const {
  std::vector<BoundExtent> coded;  // all in the group's one home
  for (std::size_t i = 0; i < group.tensors.size(); ++i) {
    const std::vector<BoundExtent> extents = sources.extents(group.tensors[i]);
    if (is_coded(extents)) {
      coded.push_back(extents[0]);
      continue;
    }
    if (FileWindow* const shown = window(group, i); shown != nullptr) {
      if (shown->open()) {
        load.add_window(extents[0], *shown);
        continue;
      }
      shown->open_memory();
    }
    std::byte* target = address(group, i);
    for (const BoundExtent& extent : extents) {
      load.add(extent, target, piece_bytes);
      target += extent.size_bytes;
    }
  }
  if (!coded.empty()) load.add_frames(*EncodedHome::of(*coded[0].reader), coded, data, kept);
}

}  // namespace tensorstream

#include "engine/streamed_group.h"

#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// Whether `window` is of the file's part that the tensor is still made of.
bool shows(const FileWindow& window, const std::vector<BoundExtent>& extents) {
  return extents.size() == 1 && window.is_of(*extents[0].reader, extents[0].offset_bytes);
}

}  // namespace

FileWindow* StreamedGroup::window(std::size_t index) const {
  return windows.empty() ? nullptr : windows[index].get();
}

std::vector<std::byte*> StreamedGroup::addresses(std::byte* place) const {
  std::vector<std::byte*> result;
  result.reserve(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const FileWindow* const shown = window(i);
    result.push_back(shown != nullptr ? shown->data() : place + layout.offsets_bytes[i]);
  }
  return result;
}

void StreamedGroup::add_to(Load& load, const SourceTable& sources, std::byte* place,
                           std::uint64_t piece_bytes) {
  const std::vector<std::byte*> targets = addresses(place);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    add_tensor(i, load, sources, targets[i], piece_bytes);
  }
}

void StreamedGroup::add_tensor(std::size_t index, Load& load, const SourceTable& sources,
                               std::byte* target, std::uint64_t piece_bytes) {
  const std::vector<BoundExtent> extents = sources.extents(tensors[index]);
  if (FileWindow* const shown = window(index); shown != nullptr) {
    bool of_file = true;
    if (!shows(*shown, extents)) of_file = false;  // guard: window-of-source
    if (of_file && shown->open()) return load.add_window(extents[0], *shown);
    shown->open_memory();
  }
  for (const BoundExtent& extent : extents) {
    load.add(extent, target, piece_bytes);
    target += extent.size_bytes;
  }
}

std::exception_ptr StreamedGroup::close_windows() noexcept {
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

bool StreamedGroup::overlaps(const StreamedGroup& other) const noexcept {
  return offset_bytes < other.offset_bytes + other.layout.size_bytes &&
         other.offset_bytes < offset_bytes + layout.size_bytes;
}

}  // namespace tensorstream

// The home of a group in host RAM: pinned memory from which a device that is not the host loads it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "engine/group_layout.h"
#include "engine/source_table.h"
#include "io/reader.h"
#include "memory/pinned_memory.h"
#include "tensorstream/engine.h"

namespace tensorstream {

/// Pinned memory as a source. The device writes to it too, where weights are changed in place.
class HostHome final : public Reader {
 public:
  /// Raises as PinnedMemory does.
  HostHome(Device& device, const std::string& group, std::uint64_t size_bytes,
           const PinnedMemoryOptions& options);

  const std::string& name() const noexcept override { return bytes_->name(); }
  Tier tier() const noexcept override { return Tier::kRam; }
  std::uint64_t size_bytes() const noexcept override { return memory_.size_bytes(); }
  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    bytes_->read(offset_bytes, out);
  }
  const std::byte* address(std::uint64_t offset_bytes) const noexcept override {
    return bytes_->address(offset_bytes);
  }
  std::uint64_t pinned_end(std::uint64_t offset_bytes) const noexcept override;

  std::uint64_t pinned_bytes() const noexcept { return memory_.pinned_bytes(); }
  std::span<std::byte> bytes() const noexcept { return memory_.bytes(); }
  /// Where kernels see the range; null where no single registration holds it.
  std::byte* device_address(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept;

 private:
  const PinnedMemory memory_;
  const std::unique_ptr<Reader> bytes_;  // of memory_
};

/// A home that holds the bytes of `group`, laid out as in its place: read from its sources by
/// several threads. Raises as PinnedMemory does, and IoError.
std::shared_ptr<HostHome> make_home(Device& device, const Group& group, const GroupLayout& layout,
                                    const SourceTable& sources, const PinnedMemoryOptions& options);

}  // namespace tensorstream

#include <cstring>
#include <utility>

#include "base/units.h"
#include "io/reader.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

class MemoryReader final : public Reader {
 public:
  MemoryReader(std::string name, std::span<const std::byte> bytes,
               std::shared_ptr<const void> owner)
      : name_(std::move(name)), bytes_(bytes), owner_(std::move(owner)) {}

  const std::string& name() const noexcept override { return name_; }
  Tier tier() const noexcept override { return Tier::kRam; }
  std::uint64_t size_bytes() const noexcept override { return bytes_.size(); }

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    const auto end = checked_add(offset_bytes, out.size());
    if (!end || *end > bytes_.size()) {
      throw IoError("read of " + format_size(out.size()) + " at offset " +
                        std::to_string(offset_bytes) + " of " + name_ + " failed: it has " +
                        std::to_string(bytes_.size()) + " bytes",
                    name_, offset_bytes, 0);
    }
    if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset_bytes, out.size());
  }

  const std::byte* address(std::uint64_t offset_bytes) const noexcept override {
    return offset_bytes < bytes_.size() ? bytes_.data() + offset_bytes : nullptr;
  }

 private:
  const std::string name_;
  const std::span<const std::byte> bytes_;
  const std::shared_ptr<const void> owner_;  // shared with whoever else uses the memory
};

}  // namespace

std::unique_ptr<Reader> create_memory_reader(std::string name, std::span<const std::byte> bytes,
                                             std::shared_ptr<const void> owner) {
  return std::make_unique<MemoryReader>(std::move(name), bytes, std::move(owner));
}

}  // namespace tensorstream

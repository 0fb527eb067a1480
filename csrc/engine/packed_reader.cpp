#include "engine/packed_reader.h"

#include "store/packed_file.h"

namespace tensorstream {
namespace {

class PackedReader final : public Reader {
 public:
  explicit PackedReader(const std::string& path) : file_(path) {}

  const std::string& name() const noexcept override { return file_.path(); }
  Tier tier() const noexcept override { return Tier::kDisk; }
  std::uint64_t size_bytes() const noexcept override { return file_.size_bytes(); }

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    file_.read(offset_bytes, out);
  }
  std::uint64_t read_frame(std::uint64_t offset_bytes, std::uint64_t size_bytes,
                           std::span<std::byte> out) override {
    return file_.read_frame(offset_bytes, size_bytes, out);
  }
  bool cached(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept override {
    return file_.cached(offset_bytes, size_bytes);
  }
  void prefetch(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept override {
    file_.prefetch(offset_bytes, size_bytes);
  }

 private:
  const PackedFile file_;
};

}  // namespace

std::unique_ptr<Reader> open_packed_reader(const std::string& path) {
  return std::make_unique<PackedReader>(path);
}

}  // namespace tensorstream

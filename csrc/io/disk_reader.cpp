#include <utility>

#include "io/disk_queue.h"
#include "io/file_opener.h"

namespace tensorstream {
namespace {

class DiskReader final : public Reader {
 public:
  DiskReader(DiskFile file, std::shared_ptr<DiskQueue> queue)
      : file_(std::make_shared<const DiskFile>(std::move(file))), queue_(std::move(queue)) {}

  const std::string& name() const noexcept override { return file_->file().path(); }
  Tier tier() const noexcept override { return Tier::kDisk; }
  std::uint64_t size_bytes() const noexcept override { return file_->file().size_bytes(); }
  const FileIdentity* identity() const noexcept override { return &file_->file().identity(); }

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    begin_read(offset_bytes, out).wait();
  }
  PendingRead begin_read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    return queue_->begin(file_, offset_bytes, out);
  }
  std::uint64_t best_shift(std::uint64_t offset_bytes) const noexcept override {
    return offset_bytes % file_->memory_alignment_bytes();
  }

 private:
  const std::shared_ptr<const DiskFile> file_;  // shared with reads under way
  const std::shared_ptr<DiskQueue> queue_;      // shared with readers of other files
};

}  // namespace

std::unique_ptr<Reader> create_disk_reader(DiskFile file, std::shared_ptr<DiskQueue> queue) {
  return std::make_unique<DiskReader>(std::move(file), std::move(queue));
}

}  // namespace tensorstream

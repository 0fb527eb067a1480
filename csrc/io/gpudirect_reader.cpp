#include <memory>
#include <utility>

#include "device/cuda_files.h"
#include "io/disk_queue.h"
#include "io/file_opener.h"
#include "platform/disk_file.h"

namespace tensorstream {
namespace {

// Each is a thread of cuFile's caller, which waits for it.
constexpr std::size_t kDeviceReads = 8;
constexpr std::uint64_t kDeviceReadBytes = 4_MiB;

/// A file as both ways to read it need it: in blocks of its own for host memory, and in any pieces
/// for cuFile, which is told of it.
struct DeviceFile {
  DeviceFile(const std::string& path, const std::shared_ptr<CudaFiles>& with)
      : files(with),
        in_blocks(DiskFile::open_direct(path)),
        in_pieces(DiskFile::open_for_device(path)),
        registration(files->add(in_pieces.file())) {
    in_blocks.check_same(in_pieces.file());
  }

  const std::shared_ptr<CudaFiles> files;  // shared with other files
  const DiskFile in_blocks;
  const DiskFile in_pieces;
  const CudaFiles::Registration registration;  // last: it goes before what it is of
};

class GpudirectReader final : public Reader {
 public:
  GpudirectReader(const std::string& path, DeviceQueues queues)
      : file_(std::make_shared<const DeviceFile>(path, queues.files)), queues_(std::move(queues)) {}

  const std::string& name() const noexcept override { return file_->in_blocks.file().path(); }
  Tier tier() const noexcept override { return Tier::kDisk; }
  std::uint64_t size_bytes() const noexcept override {
    return file_->in_blocks.file().size_bytes();
  }
  const FileIdentity* identity() const noexcept override {
    return &file_->in_blocks.file().identity();
  }

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    begin_read(offset_bytes, out).wait();
  }
  PendingRead begin_read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    return queues_.to_host->begin({file_, &file_->in_blocks}, offset_bytes, out);
  }
  std::uint64_t best_shift(std::uint64_t offset_bytes) const noexcept override {
    return offset_bytes % file_->in_blocks.memory_alignment_bytes();
  }

  bool reads_to_device() const noexcept override { return true; }
  PendingRead begin_device_read(std::uint64_t offset_bytes, std::span<std::byte> target) override {
    return queues_.to_device->begin({file_, &file_->in_pieces}, offset_bytes, target);
  }

 private:
  const std::shared_ptr<const DeviceFile> file_;  // shared with reads under way
  const DeviceQueues queues_;                     // shared with readers of other files
};

}  // namespace

std::shared_ptr<DiskQueue> create_device_queue(const std::shared_ptr<CudaFiles>& files) {
  auto transfers = create_thread_transfers_by(kDeviceReads, [files](const Transfer& transfer) {
    return files->read_once(transfer.descriptor, transfer.offset_bytes, transfer.target);
  });
  return DiskQueue::create(std::move(transfers), kDeviceReadBytes);
}

std::unique_ptr<Reader> create_gpudirect_reader(const std::string& path, DeviceQueues queues) {
  return std::make_unique<GpudirectReader>(path, std::move(queues));
}

}  // namespace tensorstream

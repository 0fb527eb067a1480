#include "engine/packed_reader.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/units.h"
#include "io/disk_queue.h"
#include "io/read_memory.h"
#include "platform/disk_file.h"
#include "platform/mapping.h"
#include "platform/page_cache.h"
#include "platform/thread_team.h"
#include "store/packed_file.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// How a packed file is read by a queue, which goes on by itself.
struct QueuedFile {
  std::shared_ptr<const DiskFile> file;  // shared with reads under way
  std::shared_ptr<DiskQueue> queue;      // shared with readers of other files
  std::shared_ptr<ThreadTeam> team;      // likewise; null where nobody shares the work
};

/// Frames that were begun to be read, to be verified by who waits.
class FrameRead final : public PendingRead::Work {
 public:
  FrameRead(std::shared_ptr<const PackedFile> file, std::shared_ptr<ThreadTeam> team,
            const PackedSpan& span, std::span<const std::byte> stored, PendingRead read)
      : file_(std::move(file)),
        team_(std::move(team)),
        span_(span),
        stored_(stored),
        read_(std::move(read)) {}

  void wait() override {
    read_.wait();
    file_->verify(span_, stored_, team_.get());
  }

 private:
  const std::shared_ptr<const PackedFile> file_;  // shared with its reader
  const std::shared_ptr<ThreadTeam> team_;        // likewise
  const PackedSpan span_;
  const std::span<const std::byte> stored_;
  PendingRead read_;
};

/// Reads through the page cache what is not asked for as frames; those are read by `queued`, if it
/// has a queue.
class PackedReader : public Reader {
 public:
  PackedReader(const std::string& path, QueuedFile queued)
      : file_(std::make_shared<PackedFile>(path)), queued_(std::move(queued)) {
    if (queued_.file != nullptr) queued_.file->check_same(file_->file());
  }

  const std::string& name() const noexcept override { return file_->path(); }
  Tier tier() const noexcept override { return Tier::kDisk; }
  std::uint64_t size_bytes() const noexcept override { return file_->size_bytes(); }
  const FileIdentity* identity() const noexcept override { return &file_->file().identity(); }

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    file_->read(offset_bytes, out);
  }
  std::uint64_t read_frame(std::uint64_t offset_bytes, std::uint64_t size_bytes,
                           std::span<std::byte> out) override {
    return file_->read_frame(offset_bytes, size_bytes, out);
  }
  std::optional<FrameSpan> frames_at(std::uint64_t offset_bytes, std::uint64_t decoded_bytes,
                                     std::uint64_t most_stored_bytes) const override {
    if (queued_.queue == nullptr) return std::nullopt;
    const auto span = file_->span_at(offset_bytes, decoded_bytes, most_stored_bytes);
    if (!span || !span->tensor->encoded) return std::nullopt;
    const std::uint64_t block_bytes = queued_.file->block_bytes();
    const std::uint64_t before = span->offset_bytes % block_bytes;
    const std::uint64_t end = align_up(span->offset_bytes + span->size_bytes, block_bytes);
    const std::uint64_t begin = span->offset_bytes - before;
    const std::uint64_t read = std::min(end, file_->file().size_bytes()) - begin;
    return FrameSpan{offset_bytes, span->decoded_bytes, span->size_bytes, before, read};
  }
  PendingRead begin_frame_read(const FrameSpan& span, std::span<std::byte> out) override {
    const PackedSpan packed = packed_span(span);
    const std::uint64_t begin = packed.offset_bytes - span.before_bytes;
    return PendingRead(std::make_unique<FrameRead>(
        file_, queued_.team, packed, out.subspan(span.before_bytes, span.stored_bytes),
        queued_.queue->begin(queued_.file, begin, out)));
  }
  std::uint64_t frame_bytes(std::uint64_t offset_bytes,
                            std::uint64_t size_bytes) const noexcept override {
    return file_->encoded_bytes(offset_bytes, size_bytes);
  }
  std::uint64_t best_read_bytes(std::uint64_t offset_bytes) const noexcept override {
    return file_->part_end(offset_bytes) - offset_bytes;
  }
  bool cached(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept override {
    return file_->cached(offset_bytes, size_bytes);
  }
  void prefetch(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept override {
    file_->prefetch(offset_bytes, size_bytes);
  }

 protected:
  const std::shared_ptr<const PackedFile>& file() const noexcept { return file_; }
  const QueuedFile& queued() const noexcept { return queued_; }
  /// What frames_at() gave, where it is in the packed file.
  PackedSpan packed_span(const FrameSpan& span) const {
    return file_->span_at(span.offset_bytes, span.decoded_bytes, span.stored_bytes).value();
  }

 private:
  const std::shared_ptr<const PackedFile> file_;  // shared with reads under way
  const QueuedFile queued_;
};

/// Reads of spans that were begun, to be decoded by who waits, and what is left to be read then.
class DecodedRead final : public PendingRead::Work {
 public:
  explicit DecodedRead(std::shared_ptr<const PackedFile> file) : file_(std::move(file)) {}

  void begin(const PackedSpan& span, ReadMemory& memory, const QueuedFile& queued,
             std::span<std::byte> out) {
    Begun begun{span, memory.take(), {}, out, {}};
    begun.stored = begun.slot.bytes(span.offset_bytes % page_size_bytes(), span.size_bytes);
    begun.read = queued.queue->begin(queued.file, span.offset_bytes, begun.stored);
    begun_.push_back(std::move(begun));
  }
  void add_rest(std::uint64_t offset_bytes, std::span<std::byte> out) {
    rest_.push_back({offset_bytes, out});
  }

  void wait() override {
    for (Begun& begun : begun_) {
      begun.read.wait();
      file_->decode(begun.span, begun.stored, begun.out);
      begun.slot = {};
    }
    for (const Rest& rest : rest_) file_->read(rest.offset_bytes, rest.out);
  }

 private:
  struct Begun {
    PackedSpan span;
    ReadMemory::Slot slot;  // outlives what fills it
    std::span<std::byte> stored;
    std::span<std::byte> out;
    PendingRead read;
  };
  struct Rest {
    std::uint64_t offset_bytes = 0;
    std::span<std::byte> out;
  };

  const std::shared_ptr<const PackedFile> file_;  // shared with its reader
  std::vector<Begun> begun_;
  std::vector<Rest> rest_;
};

/// Goes past the page cache for what is decoded whole.
class PackedDiskReader final : public PackedReader {
 public:
  PackedDiskReader(const std::string& path, const FileOpener& opener)
      : PackedReader(path, {std::make_shared<const DiskFile>(DiskFile::open_direct(path)),
                            opener.queue(), opener.team()}),
        memory_(opener.memory()),
        asks_page_cache_(opener.backend() == FileBackend::kCached) {}

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    begin_read(offset_bytes, out).wait();
  }

  PendingRead begin_read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    auto work = std::make_unique<DecodedRead>(file());
    for (std::uint64_t done = 0; done < out.size();) {
      const std::uint64_t at = offset_bytes + done;
      const auto span = file()->span_at(at, out.size() - done, ReadMemory::kSlotBytes);
      std::uint64_t size = 0;
      if (span && !is_cached(*span)) {
        size = span->decoded_bytes;
        work->begin(*span, *memory_, queued(), out.subspan(done, size));
      } else {
        // A byte that no tensor has ends the read, with the error that is due.
        const std::uint64_t part = file()->part_end(at) - at;
        size = part == 0 ? out.size() - done : std::min(part, out.size() - done);
        work->add_rest(at, out.subspan(done, size));
      }
      done += size;
    }
    return PendingRead(std::move(work));
  }

  PendingRead begin_frame_read(const FrameSpan& span, std::span<std::byte> out) override {
    const PackedSpan packed = packed_span(span);
    if (!is_cached(packed)) return PackedReader::begin_frame_read(span, out);
    const std::span<std::byte> frames = out.subspan(span.before_bytes, span.stored_bytes);
    file()->file().read_exact(packed.offset_bytes, frames);
    file()->verify(packed, frames, queued().team.get());
    return {};
  }

  std::uint64_t best_read_bytes(std::uint64_t offset_bytes) const noexcept override {
    std::uint64_t end = offset_bytes;
    for (std::uint64_t i = 0; i < kPartsOfARead; ++i) end = file()->part_end(end);
    return end - offset_bytes;
  }

  // What is not there is to stay where it is.
  bool cached(std::uint64_t /*offset_bytes*/,
              std::uint64_t /*size_bytes*/) const noexcept override {
    return true;
  }
  void prefetch(std::uint64_t /*offset_bytes*/,
                std::uint64_t /*size_bytes*/) const noexcept override {}

 private:
  static constexpr std::uint64_t kPartsOfARead = 2;

  bool is_cached(const PackedSpan& span) const noexcept {
    return asks_page_cache_ &&
           mostly_in_page_cache(file()->file(), span.offset_bytes, span.size_bytes);
  }

  const std::shared_ptr<ReadMemory> memory_;  // shared with readers of other files
  const bool asks_page_cache_;
};

std::unique_ptr<Reader> make_packed_reader(const std::string& path, const FileOpener& opener) {
  if (opener.backend() == FileBackend::kGpudirect) {
    throw UnsupportedError("'" + path +
                           "' is packed, and what is read into device memory is not decoded there; "
                           "use backend=\"direct\", or unpack the checkpoint");
  }
  if (opener.queue() != nullptr) return std::make_unique<PackedDiskReader>(path, opener);
  if (opener.page_queue() == nullptr) return open_packed_reader(path);
  auto in_pieces = std::make_shared<const DiskFile>(DiskFile::open_buffered(path));
  return std::make_unique<PackedReader>(
      path, QueuedFile{std::move(in_pieces), opener.page_queue(), opener.team()});
}

}  // namespace

std::unique_ptr<Reader> open_packed_reader(const std::string& path) {
  return std::make_unique<PackedReader>(path, QueuedFile{});
}

std::unique_ptr<Reader> open_packed_reader(const std::string& path, const FileOpener& opener) {
  std::unique_ptr<Reader> opened = make_packed_reader(path, opener);
  check_no_writer(*opened, path);
  return opened;
}

}  // namespace tensorstream

#include "io/disk_queue.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "platform/cufile.h"
#include "platform/process_memory.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

std::size_t checked_depth(const TransferQueue& transfers) {
  if (transfers.depth() > 0 && transfers.depth() <= DiskQueue::kMostDepth) return transfers.depth();
  throw ConfigError("a queue of " + std::to_string(transfers.depth()) +
                    " disk reads at a time cannot be had; give 1 to " +
                    std::to_string(DiskQueue::kMostDepth));
}

std::uint64_t checked_request(std::uint64_t request_bytes) {
  if (request_bytes > 0 && request_bytes % page_size_bytes() == 0 && request_bytes <= 1_GiB) {
    return request_bytes;
  }
  throw ConfigError("a disk cannot be read in requests of " + std::to_string(request_bytes) +
                    " bytes; give a multiple of the page size, " +
                    std::to_string(page_size_bytes()) + ", up to 1 GiB");
}

/// Memory that a child does not get: a fork would have pages that the disk writes to copied at the
/// next write to them, and older kernels then lose what the disk brings.
Mapping memory_of_queue(std::uint64_t size_bytes) {
  Mapping memory = Mapping::anonymous(size_bytes);
  memory.keep_from_children();
  return memory;
}

}  // namespace

/// A read as its owner holds it.
class DiskQueue::Work final : public PendingRead::Work {
 public:
  Work(std::shared_ptr<DiskQueue> queue, Read read)
      : queue_(std::move(queue)), read_(std::move(read)) {
    queue_->add(read_);
  }
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;
  ~Work() override { queue_->end(read_); }

  void wait() override {
    queue_->wait(read_);
    // Afterwards: bytes of a file that was rewritten meanwhile are not handed out either.
    read_.file->file().check_unchanged();  // guard: disk-unchanged
  }

 private:
  const std::shared_ptr<DiskQueue> queue_;  // shared with its readers and other reads
  Read read_;
};

std::shared_ptr<DiskQueue> DiskQueue::create(std::unique_ptr<TransferQueue> transfers,
                                             std::uint64_t request_bytes) {
  return share_at_home(
      std::unique_ptr<DiskQueue>(new DiskQueue(std::move(transfers), request_bytes)));
}

DiskQueue::DiskQueue(std::unique_ptr<TransferQueue> transfers, std::uint64_t request_bytes)
    : process_(process_id()),
      request_bytes_(checked_request(request_bytes)),
      memory_(memory_of_queue(checked_depth(*transfers) * request_bytes_)),
      slots_(transfers->depth()),
      transfers_(std::move(transfers)) {
  const std::span<std::byte> memory(memory_.data(), memory_.size_bytes());
  {
    const MutexLock lock(mutex_);
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      slots_[i].memory = memory.subspan(i * request_bytes_, request_bytes_);
      free_.push_back(&slots_[i]);  // never more than now, so that giving back takes no memory
    }
  }
  transfers_->use_memory(memory);
  transfers_->run([this](Transfer& transfer, std::int64_t result) { note(transfer, result); });
}

DiskQueue::~DiskQueue() { transfers_->stop(); }

PendingRead DiskQueue::begin(std::shared_ptr<const DiskFile> file, std::uint64_t offset_bytes,
                             std::span<std::byte> out) {
  if (process_ != process_id()) {
    throw UnsupportedError("read of '" + file->file().path() +
                           "' in a forked process: the threads that read stayed with its parent; "
                           "open the model there, or start processes by spawn");
  }
  file->file().check_inside(offset_bytes, out.size());
  Read read;
  read.pieces = cut_read({file->block_bytes(), file->memory_alignment_bytes(), request_bytes_},
                         offset_bytes, out);
  read.file = std::move(file);
  return PendingRead(std::make_unique<Work>(shared_from_this(), std::move(read)));
}

void DiskQueue::Slot::take(Read& from) {
  read = &from;
  piece = from.pieces[from.next++];
  ++from.under_way;
  progress = ReadProgress(piece.skip_bytes + piece.out.size(), from.file->block_bytes());
  descriptor = from.file->file().descriptor();
  in_memory = !piece.in_place;
  aim();
}

void DiskQueue::Slot::aim() noexcept {
  const std::span<std::byte> whole = piece.in_place ? piece.out : memory.first(piece.size_bytes);
  offset_bytes = piece.offset_bytes + progress.next_bytes();
  target = whole.subspan(progress.next_bytes());
}

std::exception_ptr DiskQueue::Slot::error() const noexcept {
  ReadOutcome wanted = progress.outcome();
  wanted.read_bytes -= std::min(wanted.read_bytes, piece.skip_bytes);
  const File& file = read->file->file();
  const std::uint64_t offset = piece.offset_bytes + piece.skip_bytes;
  try {
    if (is_cufile_result(wanted.error_number)) {
      throw cufile_read_error(file, offset, piece.out.size(),
                              static_cast<CufileResult>(wanted.error_number));
    }
    throw file.read_error(offset, piece.out.size(), wanted);
  } catch (...) {
    return std::current_exception();
  }
}

void DiskQueue::note(Transfer& transfer, std::int64_t result) noexcept {
  auto& slot = static_cast<Slot&>(transfer);
  MutexLock lock(mutex_);
  Read& read = *slot.read;
  const bool goes_on = slot.progress.note(result);
  if (goes_on && !read.error) {
    slot.aim();
    Ready again;
    again.transfers[again.count++] = &slot;
    lock.unlock();
    start(again);
    return;
  }
  const bool is_whole = slot.progress.is_whole();
  lock.unlock();
  std::exception_ptr error;
  if (!is_whole) {
    error = slot.error();  // guard: disk-read-whole
  } else if (!slot.piece.in_place) {
    std::memcpy(slot.piece.out.data(), slot.memory.data() + slot.piece.skip_bytes,
                slot.piece.out.size());
  }
  lock.lock();
  if (error) {
    // Handed over: who waits may be done with it before this thread would let go of it.
    if (!read.error) read.error = std::move(error);
    start_no_more(read);
  }
  --read.under_way;
  free_.push_back(&slot);
  const Ready ready = take_ready();
  // Who waits may end the read as soon as the lock is let go.
  if (read.is_over()) over_.notify_all();
  lock.unlock();
  start(ready);
}

DiskQueue::Ready DiskQueue::take_ready() noexcept {
  Ready ready;
  while (!free_.empty() && !waiting_.empty()) {
    Slot& slot = *free_.back();
    free_.pop_back();
    Read& read = *waiting_.front();
    slot.take(read);
    if (read.next == read.pieces.size()) waiting_.pop_front();
    ready.transfers[ready.count++] = &slot;
  }
  return ready;
}

void DiskQueue::start(const Ready& ready) noexcept {
  if (ready.count > 0) transfers_->start(std::span(ready.transfers).first(ready.count));
}

void DiskQueue::add(Read& read) {
  if (read.pieces.empty()) return;
  MutexLock lock(mutex_);
  waiting_.push_back(&read);
  const Ready ready = take_ready();
  lock.unlock();
  start(ready);
}

void DiskQueue::wait(Read& read) {
  MutexLock lock(mutex_);
  while (!read.is_over()) over_.wait(lock);
  if (read.error) std::rethrow_exception(read.error);
}

void DiskQueue::end(Read& read) noexcept {
  MutexLock lock(mutex_);
  start_no_more(read);
  while (!read.is_over()) over_.wait(lock);  // guard: disk-read-drained
}

void DiskQueue::start_no_more(Read& read) noexcept {
  if (read.next < read.pieces.size()) std::erase(waiting_, &read);
  read.next = read.pieces.size();
}

}  // namespace tensorstream

#include "memory/page_toucher.h"

#include <algorithm>

#include "platform/mapping.h"
#include "platform/processors.h"
#include "platform/threads.h"

namespace tensorstream {
namespace {

constexpr unsigned kMostUsefulThreads = 16;

std::size_t chunks_of(std::uint64_t size_bytes, std::uint64_t chunk_bytes) {
  return size_bytes / chunk_bytes + (size_bytes % chunk_bytes == 0 ? 0 : 1);
}

}  // namespace

PageToucher::PageToucher(std::span<std::byte> bytes, const PageToucherOptions& options)
    : bytes_(bytes),
      chunk_bytes_(options.chunk_bytes),
      chunks_(chunks_of(bytes.size(), chunk_bytes_)),
      touched_(chunks_) {
  const unsigned most = options.most_threads == 0
                            ? std::min(usable_processors(), kMostUsefulThreads)
                            : options.most_threads;
  start(static_cast<unsigned>(std::min<std::size_t>(most, chunks_)));
}

PageToucher::~PageToucher() {
  const MutexLock lock(mutex_);
  stopped_ = true;
}

void PageToucher::wait_for(std::uint64_t size_bytes) {
  const std::size_t wanted =
      chunks_of(std::min<std::uint64_t>(size_bytes, bytes_.size()), chunk_bytes_);
  while (const auto chunk = take(wanted)) touch(*chunk);
  MutexLock lock(mutex_);
  for (std::size_t chunk = 0; chunk < wanted; ++chunk) {
    while (!touched_[chunk]) changed_.wait(lock);
  }
}

std::optional<std::size_t> PageToucher::take(std::size_t chunks) {
  const MutexLock lock(mutex_);
  if (stopped_ || next_ >= chunks) return std::nullopt;
  return next_++;
}

void PageToucher::touch(std::size_t chunk) {
  const std::uint64_t begin = chunk * chunk_bytes_;
  const std::uint64_t end = begin + std::min(chunk_bytes_, bytes_.size() - begin);
  for (std::uint64_t offset = begin; offset < end; offset += page_size_bytes()) {
    *static_cast<volatile std::byte*>(&bytes_[offset]) = std::byte{0};
  }
  const MutexLock lock(mutex_);
  touched_[chunk] = true;
  changed_.notify_all();
}

void PageToucher::start(unsigned threads) {
  threads_ = start_helpers(threads, "memory is touched", [this] {
    while (const auto chunk = take(chunks_)) touch(*chunk);
  });
}

}  // namespace tensorstream

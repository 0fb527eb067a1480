// Memory made present by several threads at once: the system zeroes it faster so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/units.h"

namespace tensorstream {

struct PageToucherOptions {
  /// What one thread touches at a time.
  std::uint64_t chunk_bytes = 16_MiB;
  /// The most threads, the calling one included; 0 for the processors that the process may use, up
  /// to 16: more gain nothing.
  unsigned most_threads = 0;
};

/// Writes a 0 into each page of memory that nobody else writes yet, from its beginning to its end.
/// One thread waits for it; the memory outlives it.
class PageToucher {
 public:
  explicit PageToucher(std::span<std::byte> bytes, const PageToucherOptions& options = {});
  /// What is not touched by now is not.
  ~PageToucher();
  PageToucher(const PageToucher&) = delete;
  PageToucher& operator=(const PageToucher&) = delete;

  /// Blocks until the pages of the first `size_bytes` are present. The calling thread helps, so
  /// that a system which gives no more threads is slower and nothing else.
  void wait_for(std::uint64_t size_bytes);

 private:
  /// The next chunk that nobody touches, if it is one of the first `chunks`.
  std::optional<std::size_t> take(std::size_t chunks);
  void touch(std::size_t chunk);
  void start(unsigned threads);

  // Constant after construction.
  const std::span<std::byte> bytes_;
  const std::uint64_t chunk_bytes_;
  const std::size_t chunks_;

  // Guarded by mutex_.
  Mutex mutex_;
  ConditionVariable changed_;
  std::size_t next_ TS_GUARDED_BY(mutex_) = 0;
  std::vector<bool> touched_ TS_GUARDED_BY(mutex_);
  bool stopped_ TS_GUARDED_BY(mutex_) = false;

  // Last: the threads end before what they use goes.
  std::vector<std::jthread> threads_;
};

}  // namespace tensorstream

// How far a long piece of work has come.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <utility>

namespace tensorstream {

/// Told of the bytes that are done, of all. What it raises ends the work.
using ProgressSink = std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)>;

/// Counts what is done. add() is thread-safe; the sink is called on the thread that made this.
class Progress {
 public:
  Progress(ProgressSink sink, std::uint64_t total_bytes)
      : sink_(std::move(sink)), total_bytes_(total_bytes) {}

  void add(std::uint64_t done_bytes) {
    const std::uint64_t done = done_bytes_.fetch_add(done_bytes) + done_bytes;
    const bool own = std::this_thread::get_id() == owner_;
    if (sink_ && own && done < total_bytes_) sink_(done, total_bytes_);
  }

  /// Tells the sink that all is done, which it is told once.
  void finish() const {
    if (sink_) sink_(total_bytes_, total_bytes_);
  }

 private:
  const ProgressSink sink_;
  const std::uint64_t total_bytes_;
  const std::thread::id owner_ = std::this_thread::get_id();
  std::atomic<std::uint64_t> done_bytes_ = 0;
};

}  // namespace tensorstream

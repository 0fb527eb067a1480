// A reader whose reads a test holds up.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>

#include "base/mutex.h"
#include "io/reader.h"

namespace tensorstream {

/// Hands reads on to another reader once it is opened. Thread-safe.
class HeldReader final : public Reader {
 public:
  explicit HeldReader(std::shared_ptr<Reader> reader) : reader_(std::move(reader)) {}

  const std::string& name() const noexcept override { return reader_->name(); }
  Tier tier() const noexcept override { return Tier::kDisk; }
  std::uint64_t size_bytes() const noexcept override { return reader_->size_bytes(); }

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    {
      MutexLock lock(mutex_);
      ++reads_;
      changed_.notify_all();
      while (!open_) changed_.wait(lock);
    }
    reader_->read(offset_bytes, out);
  }

  /// Lets reads through from now on.
  void open() {
    const MutexLock lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  /// Blocks until a read was begun.
  void wait_until_begun() {
    MutexLock lock(mutex_);
    while (reads_ == 0) changed_.wait(lock);
  }
  /// Reads that were begun.
  int reads() {
    const MutexLock lock(mutex_);
    return reads_;
  }

 private:
  // Constant after construction.
  const std::shared_ptr<Reader> reader_;  // shared with the model that it was taken from

  // Guarded by mutex_.
  Mutex mutex_;
  ConditionVariable changed_;
  bool open_ TS_GUARDED_BY(mutex_) = false;
  int reads_ TS_GUARDED_BY(mutex_) = 0;
};

}  // namespace tensorstream

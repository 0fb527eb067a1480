// A reader that fails, ends early or is slow on order.
#pragma once

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "io/reader.h"
#include "tensorstream/error.h"

namespace tensorstream {

struct Faults {
  /// The number, from 1, of the read that fails with EIO; 0 for none. Later reads work again.
  int failing_read = 0;
  /// The source has no bytes from here on, although it says so of its size.
  std::uint64_t ends_at_bytes = std::numeric_limits<std::uint64_t>::max();
  /// How long each read takes at least.
  std::chrono::microseconds delay{0};
};

/// Hands reads on to another reader, with faults. Thread-safe.
class FaultyReader final : public Reader {
 public:
  FaultyReader(std::unique_ptr<Reader> reader, const Faults& faults)
      : reader_(std::move(reader)), faults_(faults) {}

  /// Reads that were begun.
  int reads() const noexcept { return reads_; }

  const std::string& name() const noexcept override { return reader_->name(); }
  Tier tier() const noexcept override { return reader_->tier(); }
  std::uint64_t size_bytes() const noexcept override { return reader_->size_bytes(); }

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    const int number = ++reads_;
    if (faults_.delay.count() > 0) std::this_thread::sleep_for(faults_.delay);
    if (number == faults_.failing_read) {
      throw IoError("read " + std::to_string(number) + " of '" + name() + "' failed on order",
                    name(), offset_bytes, EIO);
    }
    const std::uint64_t there =
        faults_.ends_at_bytes - std::min(faults_.ends_at_bytes, offset_bytes);
    reader_->read(offset_bytes, out.first(std::min<std::uint64_t>(out.size(), there)));
    if (there < out.size()) {
      throw IoError("'" + name() + "' ended on order", name(), faults_.ends_at_bytes, 0);
    }
  }

 private:
  // Constant after construction.
  const std::unique_ptr<Reader> reader_;
  const Faults faults_;

  // Own synchronisation.
  std::atomic<int> reads_ = 0;
};

}  // namespace tensorstream

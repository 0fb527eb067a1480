// A stream held up by a test, and bytes to copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <latch>
#include <memory>
#include <utility>
#include <vector>

#include "device/device.h"

namespace tensorstream {

/// Holds a stream until it is opened; opened when it goes, so that a failed test ends.
class Gate {
 public:
  explicit Gate(Stream& stream) {
    stream.run([latch = latch_] { latch->wait(); });
  }
  ~Gate() { open(); }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  void open() {
    if (!std::exchange(open_, true)) latch_->count_down();
  }

 private:
  std::shared_ptr<std::latch> latch_ = std::make_shared<std::latch>(1);  // shared with the stream
  bool open_ = false;
};

inline std::vector<std::byte> numbered_bytes(std::uint64_t size, int seed) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<std::byte>((i * 37 + static_cast<std::size_t>(seed)) & 0xFFU);
  }
  return bytes;
}

}  // namespace tensorstream

// NoMemory: an allocation that fails.
#pragma once

namespace tensorstream {

/// While it lasts, the calling thread's allocation of that number (1 is the next one) fails, once.
/// One at a time on a thread.
class NoMemory {
 public:
  explicit NoMemory(int nth);
  ~NoMemory();
  NoMemory(const NoMemory&) = delete;
  NoMemory& operator=(const NoMemory&) = delete;

  /// Whether it came to that allocation.
  bool has_failed() const;
};

}  // namespace tensorstream

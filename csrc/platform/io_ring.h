// IoRing: the kernel's io_uring, and the only place that calls it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace tensorstream {

/// A read for the kernel to make.
struct RingRead {
  int descriptor = -1;
  std::uint64_t offset_bytes = 0;
  std::span<std::byte> target;
  /// Whether the target lies in memory that was registered.
  bool registered = false;
  /// What the result is known by; not null.
  void* token = nullptr;
};

/// What became of a read.
struct RingResult {
  /// Null for a wake().
  void* token = nullptr;
  /// The bytes that were read, or -errno.
  std::int64_t result = 0;
};

/// How many of the reads the kernel took, the first ones, and the errno with which it refused the
/// others, then and for good; 0 where it took all.
struct RingSubmission {
  std::size_t taken = 0;
  int error_number = 0;
};

/// A queue of reads. Any thread may submit() and wake(); one thread at a time calls wait(). No read
/// is under way when it goes.
class IoRing {
 public:
  /// Why this process has none, for people; nothing where it does.
  static std::optional<std::string> refusal();

  /// With room for `entries` reads. Raises UnsupportedError.
  explicit IoRing(unsigned entries);
  ~IoRing();
  IoRing(const IoRing&) = delete;
  IoRing& operator=(const IoRing&) = delete;

  /// Has the kernel pin `memory` once and not at each read. To be called once, before any read.
  /// False where it refuses.
  [[nodiscard]] bool register_memory(std::span<std::byte> memory) noexcept;
  /// Hands reads to the kernel; never more under way than there are entries.
  [[nodiscard]] RingSubmission submit(std::span<const RingRead> reads) noexcept;
  /// Has wait() return with no token.
  void wake() noexcept;
  /// Blocks until a read is done.
  RingResult wait() noexcept;

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace tensorstream

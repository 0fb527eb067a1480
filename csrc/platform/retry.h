// The one place where interrupted calls, short reads and short writes are retried.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>

namespace tensorstream {

/// Calls `call`, which fails like a system call (below 0, errno), until it is no longer
/// interrupted.
template <typename Call>
auto retry_interrupted(const Call& call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

/// How far a read came.
struct ReadOutcome {
  std::uint64_t read_bytes = 0;
  /// The errno of the call that failed; 0 where the data ended, or all was read.
  int error_number = 0;
};

/// One read that may take several calls: what each gave, and whether another has to follow.
class ReadProgress {
 public:
  /// Of `wanted_bytes`. Each call begins at a multiple of `block_bytes`, a power of two, from where
  /// the read began.
  explicit ReadProgress(std::uint64_t wanted_bytes, std::uint64_t block_bytes = 1) noexcept
      : wanted_bytes_(wanted_bytes), block_bytes_(block_bytes) {}

  /// Where the next call begins.
  std::uint64_t next_bytes() const noexcept { return outcome_.read_bytes & ~(block_bytes_ - 1); }
  const ReadOutcome& outcome() const noexcept { return outcome_; }
  bool is_whole() const noexcept { return outcome_.read_bytes >= wanted_bytes_; }

  /// Takes note of a call that read `result` bytes from next_bytes() on, or failed with the errno
  /// -`result`. True where another call has to follow; false once all is read, the data has ended
  /// or a call has failed.
  [[nodiscard]] bool note(std::int64_t result) noexcept {
    if (result == -EINTR) return true;
    // The kernel had no room for the request: soon it has, or something is wrong.
    if (result == -EAGAIN && ++refusals_ < kMostRefusals) return true;
    refusals_ = 0;
    if (result < 0) {
      outcome_.error_number = static_cast<int>(-result);
      return false;
    }
    const std::uint64_t read = next_bytes() + static_cast<std::uint64_t>(result);
    if (read <= outcome_.read_bytes) return false;  // nothing new: the data ends here
    outcome_.read_bytes = read;
    return !is_whole();
  }

 private:
  static constexpr int kMostRefusals = 1000;

  std::uint64_t wanted_bytes_;
  std::uint64_t block_bytes_;
  ReadOutcome outcome_;
  int refusals_ = 0;
};

/// Fills `out` by `read_some(done_bytes, rest)`, which reads like pread, until `out` is full, the
/// data ends or a call fails.
template <typename ReadSome>
ReadOutcome read_fully(const ReadSome& read_some, std::span<std::byte> out) {
  ReadProgress progress(out.size());
  if (out.empty()) return progress.outcome();
  while (true) {
    const auto count = read_some(progress.next_bytes(), out.subspan(progress.next_bytes()));
    if (!progress.note(count < 0 ? -std::int64_t{errno} : count)) return progress.outcome();
  }
}

/// Writes all of `bytes` by `write_some(done_bytes, rest)`, which writes like pwrite. The errno of
/// the call that failed; 0 where all was written.
template <typename WriteSome>
int write_fully(const WriteSome& write_some, std::span<const std::byte> bytes) {
  std::uint64_t done = 0;
  while (done < bytes.size()) {
    const auto count = retry_interrupted([&] { return write_some(done, bytes.subspan(done)); });
    if (count < 0) return errno;
    if (count == 0) return EIO;
    done += static_cast<std::uint64_t>(count);
  }
  return 0;
}

}  // namespace tensorstream

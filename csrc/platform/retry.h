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

/// Fills `out` by `read_some(done_bytes, rest)`, which reads like pread, until `out` is full, the
/// data ends or a call fails.
template <typename ReadSome>
ReadOutcome read_fully(const ReadSome& read_some, std::span<std::byte> out) {
  std::uint64_t done = 0;
  while (done < out.size()) {
    const auto count = retry_interrupted([&] { return read_some(done, out.subspan(done)); });
    if (count < 0) return {done, errno};
    if (count == 0) break;
    done += static_cast<std::uint64_t>(count);
  }
  return {done, 0};
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

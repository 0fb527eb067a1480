#include "engine/disk_rate.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>

#include "base/clock.h"
#include "base/units.h"
#include "io/file_opener.h"
#include "platform/mapping.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kMostBytes = 1_GiB;
constexpr std::uint64_t kLeastBytes = 32_MiB;
constexpr double kMostSeconds = 0.5;
constexpr std::uint64_t kReadBytes = 4_MiB;
constexpr std::size_t kReads = 8;

/// Reads of a file that follow each other, kReads of them under way.
class ReadsInTurn {
 public:
  ReadsInTurn(Reader& reader, std::uint64_t begin)
      : reader_(reader), begin_(begin), memory_(Mapping::anonymous(kReads * kReadBytes)) {}

  void begin_next() {
    const std::size_t turn = begun_ % kReads;
    reads_[turn].wait();
    reads_[turn] = reader_.begin_read(begin_ + begun_ * kReadBytes,
                                      {memory_.data() + turn * kReadBytes, kReadBytes});
    ++begun_;
  }
  void wait() {
    for (PendingRead& read : reads_) read.wait();
  }

 private:
  Reader& reader_;
  const std::uint64_t begin_;
  const Mapping memory_;
  std::array<PendingRead, kReads> reads_;
  std::uint64_t begun_ = 0;
};

// The first reads find where the file's bytes are, and touch memory: they are not timed.
double rate_of(Reader& reader) {
  const std::uint64_t wanted = std::min(reader.size_bytes() / 2, kMostBytes) / kReadBytes;
  const std::uint64_t begin = (reader.size_bytes() / kReadBytes - wanted) / 2 * kReadBytes;
  ReadsInTurn reads(reader, begin);
  for (std::size_t i = 0; i < kReads / 2; ++i) reads.begin_next();
  reads.wait();
  const Clock::time_point start = Clock::now();
  std::uint64_t timed = 0;
  for (; timed + kReads / 2 < wanted && seconds_since(start) < kMostSeconds; ++timed) {
    reads.begin_next();
  }
  reads.wait();
  return static_cast<double>(timed * kReadBytes) / seconds_since(start);
}

}  // namespace

std::optional<double> measure_disk(const std::string& path) {
  try {
    const std::unique_ptr<Reader> reader = open_file_reader(path, FileBackend::kDirect);
    if (reader->size_bytes() < 2 * kLeastBytes) return std::nullopt;
    return rate_of(*reader);
  } catch (const UnsupportedError&) {  // its file system knows the page cache alone
    return std::nullopt;
  }
}

}  // namespace tensorstream

#include "engine/disk_rate.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>

#include "base/clock.h"
#include "base/units.h"
#include "io/disk_queue.h"
#include "io/file_opener.h"
#include "platform/mapping.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kMostBytes = 256_MiB;
constexpr std::uint64_t kLeastBytes = 32_MiB;
constexpr double kMostSeconds = 0.25;
constexpr std::uint64_t kReadBytes = DiskQueue::kRequestBytes;
constexpr std::size_t kReads = DiskQueue::kDepth;

double rate_of(Reader& reader) {
  const std::uint64_t wanted =
      std::min(reader.size_bytes() / 2, kMostBytes) / kReadBytes * kReadBytes;
  const std::uint64_t begin = (reader.size_bytes() - wanted) / 2 / kReadBytes * kReadBytes;
  const Mapping memory = Mapping::anonymous(kReads * kReadBytes);
  std::array<PendingRead, kReads> reads;
  const Clock::time_point start = Clock::now();
  std::uint64_t begun = 0;
  std::size_t turn = 0;
  for (; begun < wanted && seconds_since(start) < kMostSeconds; begun += kReadBytes, ++turn) {
    PendingRead& read = reads[turn % kReads];
    read.wait();
    read =
        reader.begin_read(begin + begun, {memory.data() + turn % kReads * kReadBytes, kReadBytes});
  }
  for (PendingRead& read : reads) read.wait();
  return static_cast<double>(begun) / seconds_since(start);
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

#include "codec/tensor_encoder.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/mutex.h"
#include "codec/frame_encoder.h"
#include "codec/frame_format.h"
#include "platform/threads.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

std::uint64_t frames_of(std::uint64_t size_bytes) {
  return size_bytes / kFrameBytes + (size_bytes % kFrameBytes == 0 ? 0 : 1);
}

std::span<const std::byte> part_of(std::span<const std::byte> bytes, std::uint64_t frame) {
  const std::uint64_t begin = frame * kFrameBytes;
  return bytes.subspan(begin, std::min(kFrameBytes, bytes.size() - begin));
}

/// Frames that threads encode beside each other and lay one behind the other. Each thread takes the
/// next frame; where it goes is known once those before it are encoded.
class FrameQueue {
 public:
  FrameQueue(std::span<const std::byte> bytes, std::span<std::byte> out)
      : bytes_(bytes), out_(out), frames_(frames_of(bytes.size())) {}

  /// Encodes frames until none is left. Raises what the memory for one may.
  void work(const TensorEncoding& encoding) {
    FrameEncoder encoder(encoding.dtype, encoding.level);
    std::vector<std::byte> frame(frame_bound(std::min(kFrameBytes, bytes_.size())));
    while (const auto index = take()) {
      const std::uint64_t size_bytes = encoder.encode(part_of(bytes_, *index), frame);
      std::memcpy(place(*index, size_bytes), frame.data(), size_bytes);
    }
  }

  std::uint64_t size_bytes() {
    const MutexLock lock(mutex_);
    return end_bytes_;
  }

 private:
  std::optional<std::uint64_t> take() {
    const MutexLock lock(mutex_);
    if (next_ == frames_) return std::nullopt;
    return next_++;
  }

  /// Blocks until all frames before this one have a place.
  std::byte* place(std::uint64_t index, std::uint64_t size_bytes) {
    MutexLock lock(mutex_);
    while (placed_ != index) changed_.wait(lock);
    std::byte* const target = out_.data() + end_bytes_;
    end_bytes_ += size_bytes;
    ++placed_;
    changed_.notify_all();
    return target;
  }

  // Constant after construction.
  const std::span<const std::byte> bytes_;
  const std::span<std::byte> out_;
  const std::uint64_t frames_;

  // Guarded by mutex_.
  Mutex mutex_;
  ConditionVariable changed_;
  std::uint64_t next_ TS_GUARDED_BY(mutex_) = 0;
  std::uint64_t placed_ TS_GUARDED_BY(mutex_) = 0;
  std::uint64_t end_bytes_ TS_GUARDED_BY(mutex_) = 0;
};

/// Has `threads` - 1 threads help; one that has no memory leaves its frames to the others.
void encode_beside(FrameQueue& queue, const TensorEncoding& encoding, std::uint64_t threads) {
  const auto helpers = start_helpers(threads, "tensors are encoded", [&] {
    try {
      queue.work(encoding);
    } catch (const std::exception& error) {
      log(LogLevel::kWarning, std::string("a thread encodes nothing: ") + error.what());
    }
  });
  queue.work(encoding);
}

std::uint64_t encode_raw(std::span<const std::byte> bytes, std::span<std::byte> out) {
  std::uint64_t end = 0;
  for (std::uint64_t frame = 0; frame < frames_of(bytes.size()); ++frame) {
    end += encode_raw_frame(part_of(bytes, frame), out.subspan(end));
  }
  return end;
}

}  // namespace

std::uint64_t encoded_bound(std::uint64_t size_bytes) {
  const std::uint64_t rest = size_bytes % kFrameBytes;
  const auto whole = checked_mul(size_bytes / kFrameBytes, frame_bound(kFrameBytes));
  const auto bound = whole ? checked_add(*whole, rest == 0 ? 0 : frame_bound(rest)) : std::nullopt;
  if (!bound) throw UnsupportedError("no tensor has " + std::to_string(size_bytes) + " bytes");
  return *bound;
}

std::uint64_t encode_tensor(const TensorEncoding& encoding, std::span<const std::byte> bytes,
                            std::span<std::byte> out) {
  if (out.size() < encoded_bound(bytes.size())) {
    throw ConfigError("the frames of " + std::to_string(bytes.size()) + " bytes need room for " +
                      std::to_string(encoded_bound(bytes.size())) + ", not " +
                      std::to_string(out.size()));
  }
  if (encoding.level.stores_raw()) return encode_raw(bytes, out);
  FrameQueue queue(bytes, out);
  encode_beside(queue, encoding,
                std::clamp<std::uint64_t>(encoding.threads, 1,
                                          std::max<std::uint64_t>(1, frames_of(bytes.size()))));
  const std::uint64_t size_bytes = queue.size_bytes();
  // Single frames that pay are not worth a decoder's work where the tensor as a whole does not.
  return pays(size_bytes, bytes.size()) ? size_bytes : encode_raw(bytes, out);
}

}  // namespace tensorstream

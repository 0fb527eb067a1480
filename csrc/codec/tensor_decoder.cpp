#include "codec/tensor_decoder.h"

#include <algorithm>
#include <atomic>

#include "base/mutex.h"
#include "codec/frame_decoder.h"
#include "platform/threads.h"

namespace tensorstream {
namespace {

/// The frames of a tensor that threads decode; the first fault in their order is kept.
class DecodeQueue {
 public:
  DecodeQueue(std::span<const FrameView> frames, std::span<std::byte> out)
      : frames_(frames), out_(out) {}

  void work() noexcept {
    for (std::uint64_t index = next_++; index < frames_.size(); index = next_++) {
      const std::uint64_t begin = index * kFrameBytes;
      const auto part = out_.subspan(begin, frames_[index].header().decoded_bytes);
      if (const auto fault = decode_frame(frames_[index], part)) keep(*fault, index);
    }
  }

  /// Raises the fault, if there was one. Call it when no thread works any more.
  void finish(const TensorName& name) {
    const MutexLock lock(mutex_);
    if (fault_) throw frame_error(*fault_, name.path, name.tensor, faulty_);
  }

 private:
  void keep(const FrameFault& fault, std::uint64_t index) noexcept {
    // Whatever comes before this frame in their order has been taken already.
    next_ = frames_.size();
    const MutexLock lock(mutex_);
    if (fault_ && faulty_ < index) return;
    fault_ = fault;
    faulty_ = index;
  }

  // Constant after construction.
  const std::span<const FrameView> frames_;
  const std::span<std::byte> out_;

  // Own synchronisation.
  std::atomic<std::uint64_t> next_ = 0;

  // Guarded by mutex_.
  Mutex mutex_;
  std::optional<FrameFault> fault_ TS_GUARDED_BY(mutex_);
  std::uint64_t faulty_ TS_GUARDED_BY(mutex_) = 0;
};

std::uint64_t decoded_bytes_of(std::span<const FrameView> frames) {
  std::uint64_t size_bytes = 0;
  for (const FrameView& frame : frames) size_bytes += frame.header().decoded_bytes;
  return size_bytes;
}

}  // namespace

std::vector<FrameView> parse_tensor(std::span<const std::byte> encoded, std::uint64_t size_bytes,
                                    const TensorName& name) {
  std::vector<FrameView> frames;
  std::uint64_t decoded = 0;
  while (decoded < size_bytes) {
    const auto parsed = FrameView::parse(encoded);
    if (const auto* fault = std::get_if<FrameFault>(&parsed)) {
      throw frame_error(*fault, name.path, name.tensor, frames.size());
    }
    const FrameView& frame = std::get<FrameView>(parsed);
    const std::uint64_t expected = std::min(kFrameBytes, size_bytes - decoded);
    if (frame.header().decoded_bytes != expected) {  // guard: frame-of-tensor
      throw frame_error({FrameRule::kDecodedSize, std::nullopt}, name.path, name.tensor,
                        frames.size());
    }
    frames.push_back(frame);
    decoded += expected;
    encoded = encoded.subspan(frame.header().frame_bytes);
  }
  if (!encoded.empty()) {
    throw FormatError(name.path, name.tensor,
                      "frame length: " + std::to_string(encoded.size()) +
                          " bytes follow the last of " + std::to_string(frames.size()) + " frames");
  }
  return frames;
}

void verify_tensor(std::span<const FrameView> frames, const TensorName& name) {
  for (std::size_t index = 0; index < frames.size(); ++index) {
    if (const auto fault = verify_frame(frames[index])) {
      throw frame_error(*fault, name.path, name.tensor, index);
    }
  }
}

void decode_tensor(std::span<const FrameView> frames, std::span<std::byte> out, unsigned threads,
                   const TensorName& name) {
  const std::uint64_t held = decoded_bytes_of(frames);
  if (out.size() != held) {  // guard: tensor-size
    throw FormatError(name.path, name.tensor,
                      "decoded size: frames of " + std::to_string(held) + " bytes were to fill " +
                          std::to_string(out.size()));
  }
  DecodeQueue queue(frames, out);
  {
    const std::size_t wanted = std::min<std::size_t>(threads, frames.size());
    const auto helpers = start_helpers(wanted, "tensors are decoded", [&queue] { queue.work(); });
    queue.work();
  }
  queue.finish(name);
}

}  // namespace tensorstream

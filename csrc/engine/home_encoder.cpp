// Making an EncodedHome: frames are read and encoded beside each other, and each batch gets a part
// of the home's memory, of its size, once its last frame is encoded.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <optional>
#include <utility>
#include <variant>

#include "base/mutex.h"
#include "base/units.h"
#include "codec/frame_decoder.h"
#include "codec/frame_encoder.h"
#include "engine/encoded_home.h"
#include "platform/processors.h"
#include "platform/threads.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr std::size_t kMostThreads = 32;

/// Memory in which a batch is encoded, each frame behind room for the largest that those before it
/// may be.
struct Scratch {
  std::unique_ptr<std::byte[]> bytes;
  std::uint64_t size_bytes = 0;
  Reservation reservation;
};

/// A batch that is being encoded.
struct OpenBatch {
  Scratch scratch;
  std::size_t left = 0;  // of its parts, those that are not encoded
};

/// The frames of a group that threads encode; each takes the next part.
class HomeEncoder {
 public:
  HomeEncoder(Device& device, const EncodedHomeParts& parts, const EncodedHomeOptions& options)
      : parts_(parts),
        options_(options),
        cut_(cut_into_frames(parts.group, parts.tensors, options.batch_bytes)),
        memory_(device, most_bytes(cut_),
                "the encoded weights of '" + parts.group.name + "' in host memory", options.budget),
        sizes_(cut_.parts.size()),
        stored_(cut_.batches.size()),
        open_(cut_.batches.size()) {
    for (std::size_t batch = 0; batch < cut_.batches.size(); ++batch) {
      open_[batch].left = cut_.batches[batch].part_count;
      to_store_bytes_ += cut_.batches[batch].bound_bytes;
      largest_bytes_ = std::max(largest_bytes_, cut_.batches[batch].bound_bytes);
    }
  }

  std::size_t part_count() const noexcept { return cut_.parts.size(); }

  /// Encodes parts until none is left or one fails.
  void work() noexcept {
    try {
      std::vector<std::byte> read;
      std::optional<FrameEncoder> encoder;
      std::optional<Dtype> encodes;
      while (const auto taken = take()) {
        const FramePart& part = cut_.parts[taken->part];
        sizes_[taken->part] = read_frame(part, taken->frame);
        if (sizes_[taken->part] != 0) {
          if (note_encoded(taken->batch)) store(taken->batch);
          continue;
        }
        const Dtype dtype = parts_.tensors[parts_.group.tensors[part.position]].dtype;
        if (encodes != dtype) encoder.emplace(dtype, options_.level);
        encodes = dtype;
        sizes_[taken->part] = encoder->encode(bytes_of(part, read), taken->frame);
        if (note_encoded(taken->batch)) store(taken->batch);
      }
    } catch (...) {
      note_failure();
    }
  }

  /// Raises what failed first. Call it when no thread works any more.
  std::shared_ptr<EncodedHome> finish() {
    {
      const MutexLock lock(mutex_);
      if (error_) std::rethrow_exception(error_);
    }
    std::vector<EncodedHome::Frame> frames;
    frames.reserve(cut_.parts.size());
    std::vector<EncodedHome::Batch> batches;
    for (const std::vector<EncodedHome::Batch>& stored : stored_) {
      batches.insert(batches.end(), stored.begin(), stored.end());
    }
    for (const EncodedHome::Batch& batch : batches) {
      const std::span<const std::byte> encoded = batch.bytes.subspan(batch.table_bytes());
      for (const BatchedFrame& frame : batch.frames()) {
        const auto parsed = FrameView::parse(encoded.subspan(frame.encoded_offset));
        if (const auto* const fault = std::get_if<FrameFault>(&parsed)) {
          throw frame_error(*fault, "host memory", parts_.group.name, frames.size());
        }
        const FramePart& part = cut_.parts[frames.size()];
        frames.push_back({frame.decoded_offset, tensor_offset(part), std::get<FrameView>(parsed)});
      }
    }
    return std::make_shared<EncodedHome>(parts_.group.name, parts_.layout.size_bytes,
                                         memory_.finish(), std::move(batches), std::move(frames));
  }

 private:
  struct Taken {
    std::size_t part;
    std::size_t batch;
    std::span<std::byte> frame;
  };

  /// However the frames are divided into batches.
  static std::uint64_t most_bytes(const FrameBatches& cut) {
    std::uint64_t most = 0;
    for (const FramePart& part : cut.parts) {
      most += PinnedBuilder::room_for(frame_bound(part.size_bytes) + frame_table_bytes(1));
    }
    return most;
  }

  std::uint64_t tensor_offset(const FramePart& part) const {
    return parts_.layout.offsets_bytes[part.position];
  }

  /// The next part, and where its frame is written to; nothing where others encode what is left.
  std::optional<Taken> take() {
    const MutexLock lock(mutex_);
    if (error_ || next_ == cut_.parts.size()) return std::nullopt;
    while (next_ == cut_.batches[batch_].first_part + cut_.batches[batch_].part_count) ++batch_;
    OpenBatch& open = open_[batch_];
    if (open.scratch.bytes == nullptr) {
      auto scratch = take_scratch();
      if (!scratch) return std::nullopt;
      open.scratch = std::move(*scratch);
      offset_ = 0;
    }
    const std::uint64_t bound = frame_bound(cut_.parts[next_].size_bytes);
    const Taken taken{next_, batch_, {open.scratch.bytes.get() + offset_, bound}};
    offset_ += bound;
    ++next_;
    return taken;
  }

  /// Nothing where there is no room for another one beside what is to be stored: whoever has one
  /// takes the next batch too.
  std::optional<Scratch> take_scratch() TS_REQUIRES(mutex_) {
    if (!free_.empty()) {
      Scratch scratch = std::move(free_.back());
      free_.pop_back();
      return scratch;
    }
    Scratch made;
    if (options_.budget != nullptr) {
      auto reservation = options_.budget->try_reserve(largest_bytes_);
      if (scratches_ != 0) {  // guard: scratch-beside-its-home
        if (!reservation || options_.budget->free_bytes() < to_store_bytes_) return std::nullopt;
      }
      made.reservation =
          reservation ? std::move(*reservation)
                      : options_.budget->reserve(largest_bytes_, "memory to encode weights in");
    }
    made.bytes = std::make_unique_for_overwrite<std::byte[]>(largest_bytes_);
    made.size_bytes = largest_bytes_;
    ++scratches_;
    return made;
  }

  /// True for the last part of a batch.
  bool note_encoded(std::size_t batch) {
    const MutexLock lock(mutex_);
    return --open_[batch].left == 0;
  }

  /// Reads the part's frame where its source has one, whatever level it was encoded at, and returns
  /// its size; else 0.
  std::uint64_t read_frame(const FramePart& part, std::span<std::byte> frame) const {
    const std::vector<BoundExtent>& extents = parts_.extents[part.position];
    if (extents.size() != 1) return 0;
    const BoundExtent& extent = extents.front();
    return extent.reader->read_frame(extent.offset_bytes + part.offset_bytes, part.size_bytes,
                                     frame);
  }

  /// The part's bytes: where they lie in RAM, or read to `buffer`.
  std::span<const std::byte> bytes_of(const FramePart& part, std::vector<std::byte>& buffer) const {
    std::uint64_t skip = part.offset_bytes;
    std::uint64_t done = 0;
    for (const BoundExtent& extent : parts_.extents[part.position]) {
      if (skip >= extent.size_bytes) {
        skip -= extent.size_bytes;
        continue;
      }
      const std::uint64_t size = std::min(extent.size_bytes - skip, part.size_bytes - done);
      const std::uint64_t offset = extent.offset_bytes + std::exchange(skip, 0);
      const std::byte* const address = extent.reader->address(offset);
      if (size == part.size_bytes && address != nullptr) return {address, size};
      buffer.resize(part.size_bytes);
      extent.reader->read(offset, std::span(buffer).subspan(done, size));
      done += size;
      if (done == part.size_bytes) break;
    }
    return buffer;
  }

  /// Brings a batch to the home's memory, as several where its frames take more than a batch may;
  /// the scratch is free for another.
  void store(std::size_t index) {
    const FrameBatch& cut = cut_.batches[index];
    Scratch& scratch = open_[index].scratch;
    const std::byte* source = scratch.bytes.get();
    const std::size_t end = cut.first_part + cut.part_count;
    for (std::size_t first = cut.first_part; first < end;) {
      const std::size_t count = parts_that_fit(first, end);
      stored_[index].push_back(store_parts(first, count, source));
      first += count;
    }
    const MutexLock lock(mutex_);
    free_.push_back(std::move(scratch));
    to_store_bytes_ -= cut.bound_bytes;
  }

  /// How many of the encoded parts from `first` on are one batch.
  std::size_t parts_that_fit(std::size_t first, std::size_t end) const {
    std::uint64_t bytes = 0;
    std::size_t last = first;
    while (last < end) {
      bytes += sizes_[last] + frame_table_bytes(1);
      if (bytes > options_.slot_bytes) break;  // guard: batch-fits-its-slot
      ++last;
    }
    return last - first;
  }

  /// One batch of frames that lie at `source`, which goes on behind them.
  EncodedHome::Batch store_parts(std::size_t first, std::size_t count, const std::byte*& source) {
    const std::uint64_t table_bytes = frame_table_bytes(count);
    std::uint64_t size_bytes = table_bytes;
    for (std::size_t i = 0; i < count; ++i) size_bytes += sizes_[first + i];
    const std::span<std::byte> bytes = memory_.take(size_bytes);
    const std::span<std::byte> encoded = bytes.subspan(table_bytes);
    std::uint64_t end = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const FramePart& part = cut_.parts[first + i];
      const BatchedFrame entry{end, tensor_offset(part) + part.offset_bytes};
      std::memcpy(bytes.data() + i * sizeof(entry), &entry, sizeof(entry));
      std::memcpy(encoded.data() + end, source, sizes_[first + i]);
      end += sizes_[first + i];
      source += frame_bound(part.size_bytes);
    }
    return {bytes, count};
  }

  void note_failure() noexcept {
    const MutexLock lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }

  // Constant after construction.
  const EncodedHomeParts& parts_;
  const EncodedHomeOptions& options_;
  const FrameBatches cut_;
  std::uint64_t largest_bytes_ = 0;

  PinnedBuilder memory_;
  // By part and by batch: used by the thread that encodes the one and by the last of the other.
  std::vector<std::uint64_t> sizes_;
  std::vector<std::vector<EncodedHome::Batch>> stored_;

  // Guarded by mutex_; a scratch is its batch's threads' own.
  Mutex mutex_;
  std::vector<OpenBatch> open_;
  std::vector<Scratch> free_ TS_GUARDED_BY(mutex_);
  std::size_t scratches_ TS_GUARDED_BY(mutex_) = 0;
  std::uint64_t to_store_bytes_ TS_GUARDED_BY(mutex_) = 0;  // at most
  std::size_t next_ TS_GUARDED_BY(mutex_) = 0;
  std::size_t batch_ TS_GUARDED_BY(mutex_) = 0;
  std::uint64_t offset_ TS_GUARDED_BY(mutex_) = 0;
  std::exception_ptr error_ TS_GUARDED_BY(mutex_);
};

}  // namespace

std::shared_ptr<EncodedHome> make_encoded_home(Device& device, const EncodedHomeParts& parts,
                                               const EncodedHomeOptions& options) {
  HomeEncoder encoder(device, parts, options);
  const std::size_t wanted =
      std::min({encoder.part_count(), std::size_t{usable_processors()}, kMostThreads});
  {
    const auto helpers = start_helpers(wanted, "homes are encoded", [&] { encoder.work(); });
    encoder.work();
  }
  return encoder.finish();
}

}  // namespace tensorstream

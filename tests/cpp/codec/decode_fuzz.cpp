// Does a GPU decode what the host encoded, for millions of random tensors, many a launch?
//
// Tensors of up to 8 Ki elements, of every layout, level and kind of values, are encoded by all
// cores, decoded by the host, and decoded by the GPU in batches of one launch. What the GPU wrote
// is compared byte for byte, the bytes between tensors too, which nobody is to write.
//
// decode_fuzz [--count TENSORS] [--first NUMBER] [--seed NUMBER] [--seconds MOST] [--batch TENSORS]
//             [--threads N] [--driver LIBRARY] [--compiler LIBRARY] [--compiler-folder FOLDER]
//
// A tensor that is wrong is told by its number: --first NUMBER --count 1 tries it alone. Ends with
// 0 where all were right, 1 where one was not, 2 where nothing could be tried, and 3 where the time
// was over before all were.
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "base/units.h"
#include "codec/device_decoder.h"
#include "codec/frame_decoder.h"
#include "codec/frame_encoder.h"
#include "codec/random_tensors.h"
#include "device/cuda_device.h"
#include "platform/processors.h"

namespace tensorstream {
namespace {

using Bytes = std::vector<std::byte>;
using Clock = std::chrono::steady_clock;

constexpr std::byte kUnwritten{0xA5};
constexpr std::uint64_t kBetween = 32;  // bytes that nobody is to write, between tensors

struct Options {
  std::uint64_t count = 10'000'000;
  std::uint64_t first = 0;
  std::uint64_t seed = 1;
  double seconds = 540;
  std::uint64_t batch = 20'000;
  unsigned threads = usable_processors();
  std::string driver = std::string(kCudaDriverLibrary);
  NvrtcPlaces compiler;
};

Options options_of(int count, char** arguments) {
  Options options;
  const std::map<std::string, std::function<void(const std::string&)>> taken = {
      {"--count", [&](const auto& value) { options.count = std::stoull(value); }},
      {"--first", [&](const auto& value) { options.first = std::stoull(value); }},
      {"--seed", [&](const auto& value) { options.seed = std::stoull(value); }},
      {"--seconds", [&](const auto& value) { options.seconds = std::stod(value); }},
      {"--batch", [&](const auto& value) { options.batch = std::max(1ULL, std::stoull(value)); }},
      {"--threads",
       [&](const auto& value) {
         options.threads = std::max(1U, static_cast<unsigned>(std::stoul(value)));
       }},
      {"--driver", [&](const auto& value) { options.driver = value; }},
      {"--compiler", [&](const auto& value) { options.compiler.library = value; }},
      {"--compiler-folder", [&](const auto& value) { options.compiler.folders.push_back(value); }}};
  for (int i = 1; i < count; i += 2) {
    const auto option = taken.find(arguments[i]);
    if (option == taken.end()) {
      throw std::runtime_error("there is no option " + std::string(arguments[i]));
    }
    if (i + 1 == count) throw std::runtime_error(option->first + " needs a value");
    option->second(arguments[i + 1]);
  }
  return options;
}

/// Runs `work` for each part of `count`, on so many threads.
void in_parallel(unsigned threads, std::uint64_t count,
                 const std::function<void(std::uint64_t begin, std::uint64_t end)>& work) {
  std::vector<std::jthread> workers;
  for (unsigned i = 0; i < threads; ++i) {
    workers.emplace_back([&, i] { work(count * i / threads, count * (i + 1) / threads); });
  }
}

/// One tensor of a batch, and where it is.
struct Item {
  RandomTensor tensor;
  std::uint64_t decoded_offset = 0;
  std::uint64_t scratch_offset = 0;
  std::uint64_t frame_bytes = 0;
  bool coded = false;
  bool right_on_host = true;
};

/// What was done.
struct Counts {
  std::uint64_t tensors = 0;
  std::uint64_t elements = 0;
  std::uint64_t coded = 0;
  std::uint64_t launches = 0;
  std::array<std::uint64_t, static_cast<std::size_t>(Values::kCount)> by_values{};
};

/// Tensors that are encoded beside each other and decoded at once.
class Batch {
 public:
  Batch(const RandomTensors& tensors, std::uint64_t first, std::uint64_t count, unsigned threads)
      : tensors_(tensors), first_(first), items_(count), threads_(threads) {
    std::uint64_t decoded = kBetween;
    std::uint64_t scratch = 0;
    for (std::uint64_t i = 0; i < count; ++i) {
      Item& item = items_[i];
      item.tensor = tensors.describe(first + i);
      item.decoded_offset = decoded;
      item.scratch_offset = scratch;
      decoded = align_up(decoded + item.tensor.size_bytes() + kBetween, kFrameAlignment);
      scratch += frame_bound(item.tensor.size_bytes());
    }
    truth_.assign(decoded, kUnwritten);
    scratch_ = std::make_unique_for_overwrite<std::byte[]>(scratch);
  }

  /// Makes, encodes and decodes every tensor on the host.
  void encode() {
    in_parallel(threads_, items_.size(), [&](std::uint64_t begin, std::uint64_t end) {
      std::map<std::pair<Dtype, std::uint32_t>, FrameEncoder> encoders;
      Bytes decoded;
      for (std::uint64_t i = begin; i < end; ++i) {
        Item& item = items_[i];
        const std::span<std::byte> bytes = truth_of(item);
        tensors_.fill(first_ + i, item.tensor, bytes);
        FrameEncoder& encoder =
            encoders
                .try_emplace({item.tensor.dtype, item.tensor.level}, item.tensor.dtype,
                             CompressionLevel(item.tensor.level))
                .first->second;
        const std::span<std::byte> frame(scratch_.get() + item.scratch_offset,
                                         frame_bound(bytes.size()));
        item.frame_bytes = encoder.encode(bytes, frame);
        decode_on_host(item, frame.first(item.frame_bytes), bytes, decoded);
      }
    });
    lay_out();
  }

  std::span<const BatchedFrame> frames() const { return frames_; }
  const Bytes& encoded() const { return encoded_; }
  /// What the target is to hold at last, and what it holds before.
  const Bytes& truth() const { return truth_; }

  /// Counts the tensors, and shows those that are wrong. False where one is.
  bool check(const Bytes& found, Counts& counts) const {
    bool right = found == truth_;
    for (std::uint64_t i = 0; i < items_.size(); ++i) {
      const Item& item = items_[i];
      ++counts.tensors;
      counts.elements += item.tensor.elements;
      counts.coded += item.coded ? 1 : 0;
      ++counts.by_values.at(static_cast<std::size_t>(item.tensor.values));
      if (!item.right_on_host) {
        right = false;
        show(i, "the host decodes it wrongly");
      }
    }
    if (found != truth_) show_first_difference(found);
    return right;
  }

 private:
  std::span<std::byte> truth_of(const Item& item) {
    return std::span(truth_).subspan(item.decoded_offset, item.tensor.size_bytes());
  }

  static void decode_on_host(Item& item, std::span<const std::byte> frame,
                             std::span<const std::byte> bytes, Bytes& decoded) {
    decoded.resize(bytes.size());
    const auto parsed = FrameView::parse(frame);
    const auto* const view = std::get_if<FrameView>(&parsed);
    item.right_on_host = view != nullptr && !decode_frame(*view, decoded) &&
                         std::memcmp(decoded.data(), bytes.data(), bytes.size()) == 0;
    item.coded = view != nullptr && view->header().kind == FrameKind::kCoded;
  }

  /// Puts the frames one behind the other.
  void lay_out() {
    std::uint64_t size = 0;
    for (const Item& item : items_) {
      frames_.push_back({size, item.decoded_offset});
      size += item.frame_bytes;
    }
    encoded_.resize(size);
    for (std::uint64_t i = 0; i < items_.size(); ++i) {
      std::memcpy(encoded_.data() + frames_[i].encoded_offset,
                  scratch_.get() + items_[i].scratch_offset, items_[i].frame_bytes);
    }
  }

  void show(std::uint64_t index, const std::string& what) const {
    const RandomTensor& tensor = items_[index].tensor;
    std::printf("tensor %llu: %s of %llu elements, %s, level %u: %s\n",
                static_cast<unsigned long long>(first_ + index),
                std::string(dtype_torch_name(tensor.dtype)).c_str(),
                static_cast<unsigned long long>(tensor.elements), name_of(tensor.values),
                tensor.level, what.c_str());
  }

  void show_first_difference(const Bytes& found) const {
    const auto at =
        static_cast<std::uint64_t>(std::ranges::mismatch(found, truth_).in1 - found.begin());
    auto behind = std::ranges::upper_bound(items_, at, {}, &Item::decoded_offset);
    const auto index =
        static_cast<std::uint64_t>(std::max<std::ptrdiff_t>(0, behind - items_.begin() - 1));
    show(index, "byte " +
                    std::to_string(static_cast<std::int64_t>(at) -
                                   static_cast<std::int64_t>(items_[index].decoded_offset)) +
                    " of it is wrong on the GPU");
  }

  const RandomTensors& tensors_;
  const std::uint64_t first_;
  std::vector<Item> items_;
  const unsigned threads_;
  Bytes truth_;
  std::unique_ptr<std::byte[]> scratch_;
  std::vector<BatchedFrame> frames_;
  Bytes encoded_;
};

/// Device memory that grows as batches ask for it.
class GrowingMemory {
 public:
  explicit GrowingMemory(Device& device) : device_(device) {}
  std::byte* of(std::uint64_t size_bytes) {
    if (memory_ == nullptr || memory_->size_bytes() < size_bytes) {
      memory_.reset();
      memory_ = device_.allocate(size_bytes + size_bytes / 8);
    }
    return memory_->data();
  }

 private:
  Device& device_;
  std::unique_ptr<DeviceMemory> memory_;
};

/// What the GPU makes of batches.
class GpuSide {
 public:
  explicit GpuSide(Device& device)
      : decoder_(create_device_decoder(device)),
        stream_(device.create_stream()),
        table_(device),
        encoded_(device),
        decoded_(device) {}

  void decode(const Batch& batch, Bytes& found) {
    const auto table = std::as_bytes(batch.frames());
    const std::uint64_t size = batch.truth().size();
    std::byte* const on_device = decoded_.of(size);
    found.assign(size, kUnwritten);
    stream_->copy_to_device(on_device, found.data(), size);
    std::byte* const table_on_device = table_.of(table.size());
    stream_->copy_to_device(table_on_device, table.data(), table.size());
    std::byte* const encoded_on_device = encoded_.of(batch.encoded().size());
    stream_->copy_to_device(encoded_on_device, batch.encoded().data(), batch.encoded().size());
    decoder_->decode(*stream_, batch.frames(), table_on_device, encoded_on_device, on_device);
    stream_->synchronize();  // nobody writes to `found` before its bytes were read
    stream_->copy_to_host(found.data(), on_device, size);
    stream_->synchronize();
  }

 private:
  const std::unique_ptr<DeviceDecoder> decoder_;
  const std::unique_ptr<Stream> stream_;
  GrowingMemory table_;
  GrowingMemory encoded_;
  GrowingMemory decoded_;
};

void show(const Counts& counts, double seconds) {
  std::printf("%llu tensors, %llu elements, %llu coded, in %llu launches and %.1f s:",
              static_cast<unsigned long long>(counts.tensors),
              static_cast<unsigned long long>(counts.elements),
              static_cast<unsigned long long>(counts.coded),
              static_cast<unsigned long long>(counts.launches), seconds);
  for (std::size_t i = 0; i < counts.by_values.size(); ++i) {
    std::printf(" %s %llu%s", name_of(static_cast<Values>(i)),
                static_cast<unsigned long long>(counts.by_values[i]),
                i + 1 == counts.by_values.size() ? "\n" : ",");
  }
  std::fflush(stdout);
}

/// The GPU decodes one batch while the host makes the next.
int run(const Options& options) {
  const auto device =
      create_cuda_device({.driver_library = options.driver, .compiler = options.compiler});
  GpuSide gpu(*device);
  const RandomTensors tensors(options.seed);
  const Clock::time_point begin = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  const std::uint64_t end = options.first + options.count;
  const auto make = [&](std::uint64_t first) {
    auto batch = std::make_unique<Batch>(tensors, first, std::min(options.batch, end - first),
                                         options.threads);
    batch->encode();
    return batch;
  };
  Counts counts;
  Bytes found;
  bool right = true;
  double shown = 0;
  std::unique_ptr<Batch> batch = options.count == 0 ? nullptr : make(options.first);
  for (std::uint64_t next = options.first + options.batch; batch != nullptr && right;
       next += options.batch) {
    std::unique_ptr<Batch> following;
    {
      std::jthread maker;
      if (next < end && seconds() < options.seconds) {
        maker = std::jthread([&] { following = make(next); });
      }
      gpu.decode(*batch, found);
      ++counts.launches;
      right = batch->check(found, counts);
    }
    batch = std::move(following);
    if (seconds() - shown > 10) {
      shown = seconds();
      show(counts, shown);
    }
  }
  show(counts, seconds());
  if (!right) {
    std::printf("WRONG\n");
    return 1;
  }
  const bool whole = counts.tensors == options.count;
  std::printf(whole ? "all right\n" : "the time is over: all right so far\n");
  return whole ? 0 : 3;
}

}  // namespace
}  // namespace tensorstream

int main(int count, char** arguments) {
  try {
    return tensorstream::run(tensorstream::options_of(count, arguments));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}

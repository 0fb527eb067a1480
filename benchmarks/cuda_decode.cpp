// Questions: how many bytes of weights does a GPU decode in a second, by type, level and shape of
// the kernel, and how does that compare with copying them within the device?
//
// Method: Gaussian weights of deviation 0.02 (fp8: 1), one transformer block of 7B (202,383,360
// weights), one matrix of 4096 x 4096, and frames of 2 MiB of weights, up to what is decoded of a
// ring at once; encoded on all cores. Each is decoded into several buffers in turn, after a copy of
// more than the device's caches hold, timed by events around one decode; median and spread of the
// repeats after a warm-up. The last result in each buffer is compared with the original, byte for
// byte. `decoded_gb_s` is bytes written; a copy reads as many as it writes.
//
// cuda_decode [--output FILE] [--repeats N] [--block WEIGHTS] [--matrix WEIGHTS] [--only TENSOR]
//             [--driver LIBRARY] [--compiler LIBRARY] [--compiler-folder FOLDER]
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "codec/cuda_decoder.h"
#include "codec/tensor_decoder.h"
#include "codec/tensor_encoder.h"
#include "device/cuda_device.h"

namespace tensorstream {
namespace {

using Bytes = std::vector<std::byte>;
using Json = nlohmann::ordered_json;

constexpr std::uint64_t kBlockWeights = 202'383'360;
constexpr std::uint64_t kMatrixWeights = std::uint64_t{4096} * 4096;
constexpr std::uint64_t kRotatedBytes = 512_MiB;  // past any cache, by several buffers
constexpr std::size_t kMostBuffers = 6;
constexpr std::uint64_t kCachedBytes = 128_MiB;  // no cache holds as many
// Weights of a frame, and frames of launches: a wave of warps is 24.75 on the largest GPUs.
constexpr std::uint64_t kFrameWeights = 1_MiB;
constexpr std::array kFrames = {8, 16, 20, 24, 26, 32, 40, 43, 48};

struct Options {
  std::string output;
  std::string driver = std::string(kCudaDriverLibrary);
  NvrtcPlaces compiler;
  int repeats = 25;
  std::uint64_t block = kBlockWeights;
  std::uint64_t matrix = kMatrixWeights;
  std::string only;
};

Options options_of(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; i += 2) {
    const std::string name = arguments[i];
    if (i + 1 == count) throw std::runtime_error(name + " needs a value");
    const std::string value = arguments[i + 1];
    if (name == "--output") {
      options.output = value;
    } else if (name == "--repeats") {
      options.repeats = std::max(1, std::stoi(value));
    } else if (name == "--block") {
      options.block = std::stoull(value);
    } else if (name == "--matrix") {
      options.matrix = std::stoull(value);
    } else if (name == "--only") {
      options.only = value;
    } else if (name == "--driver") {
      options.driver = value;
    } else if (name == "--compiler") {
      options.compiler.library = value;
    } else if (name == "--compiler-folder") {
      options.compiler.folders.push_back(value);
    } else {
      throw std::runtime_error("there is no option " + name);
    }
  }
  return options;
}

/// What the library does not call: events that time, and copies within the device.
class Timer {
 public:
  Timer(const CudaDriver& driver, const std::string& library, CudaStreamHandle stream)
      : driver_(driver), stream_(stream) {
    void* const opened = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    find(opened, "cuEventElapsedTime", elapsed_);
    find(opened, "cuMemcpyDtoDAsync_v2", copy_);
    times_ = elapsed_ != nullptr;
    for (CudaEventHandle* event : {&begin_, &end_}) {
      check(driver_.cuEventCreate(event, times_ ? 0 : kCudaEventDisableTiming), "cuEventCreate");
    }
  }

  bool copies() const { return copy_ != nullptr; }
  void copy(std::byte* target, const std::byte* source, std::uint64_t size_bytes) const {
    check(copy_(reinterpret_cast<CudaAddress>(target), reinterpret_cast<CudaAddress>(source),
                size_bytes, stream_),
          "cuMemcpyDtoDAsync_v2");
  }

  /// Seconds that `work`, which enqueues, takes the device.
  template <typename Work>
  double seconds(const Work& work) const {
    const auto began = std::chrono::steady_clock::now();
    check(driver_.cuEventRecord(begin_, stream_), "cuEventRecord");
    work();
    check(driver_.cuEventRecord(end_, stream_), "cuEventRecord");
    check(driver_.cuEventSynchronize(end_), "cuEventSynchronize");
    if (!times_) {  // a driver of tests
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    }
    float milliseconds = 0;
    check(elapsed_(&milliseconds, begin_, end_), "cuEventElapsedTime");
    return static_cast<double>(milliseconds) / 1e3;
  }

 private:
  template <typename Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
  }
  void check(CudaResult result, const char* call) const {
    if (result != CudaResult::kSuccess) throw cuda_error(driver_, result, {call, "the benchmark"});
  }

  const CudaDriver& driver_;
  CudaStreamHandle stream_;
  CudaResult (*elapsed_)(float*, CudaEventHandle, CudaEventHandle) = nullptr;
  CudaResult (*copy_)(CudaAddress, CudaAddress, std::size_t, CudaStreamHandle) = nullptr;
  bool times_ = false;
  CudaEventHandle begin_ = nullptr;
  CudaEventHandle end_ = nullptr;
};

/// The bits of the element of a type that is nearest to zero from `value`; ranges fit the weights.
std::uint32_t bits_of(Dtype dtype, float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t sign = bits >> 31U;
  const auto exponent = static_cast<int>((bits >> 23U) & 0xFFU) - 127;
  const auto biased = [&](int bias) {
    return static_cast<std::uint32_t>(std::max(exponent + bias, 0));
  };
  switch (dtype) {
    case Dtype::kBf16:
      return bits >> 16U;
    case Dtype::kF16:
      return (sign << 15U) | (biased(15) << 10U) | ((bits >> 13U) & 0x3FFU);
    case Dtype::kF8E4M3:
      return (sign << 7U) | (biased(7) << 3U) | ((bits >> 20U) & 7U);
    case Dtype::kF8E5M2:
      return (sign << 7U) | (biased(15) << 2U) | ((bits >> 21U) & 3U);
    default:
      return bits;
  }
}

Bytes weights_of(Dtype dtype, std::uint64_t count) {
  const std::uint64_t element_bytes = dtype_bits(dtype) / 8;
  Bytes bytes(count * element_bytes);
  const unsigned threads = std::max(1U, std::thread::hardware_concurrency());
  std::vector<std::jthread> workers;
  for (unsigned worker = 0; worker < threads; ++worker) {
    workers.emplace_back([&, worker] {
      std::mt19937 random(worker + 1);
      std::normal_distribution<float> normal(0, dtype_bits(dtype) == 8 ? 1.0F : 0.02F);
      for (std::uint64_t i = count * worker / threads; i < count * (worker + 1) / threads; ++i) {
        const std::uint32_t bits = bits_of(dtype, normal(random));
        std::memcpy(bytes.data() + i * element_bytes, &bits, element_bytes);
      }
    });
  }
  return bytes;
}

/// An encoded tensor, and the table of its frames.
struct Encoded {
  Bytes bytes;
  std::vector<BatchedFrame> frames;
};

Encoded encode(Dtype dtype, std::uint32_t level, const Bytes& weights) {
  Encoded encoded;
  encoded.bytes.resize(encoded_bound(weights.size()));
  const unsigned threads = std::max(1U, std::thread::hardware_concurrency());
  encoded.bytes.resize(
      encode_tensor({dtype, CompressionLevel(level), threads}, weights, encoded.bytes));
  std::uint64_t at = 0;
  for (const FrameView& frame : parse_tensor(encoded.bytes, weights.size(), {"", "weights"})) {
    encoded.frames.push_back({at, encoded.frames.size() * kFrameBytes});
    at += frame.header().frame_bytes;
  }
  return encoded;
}

/// Median, and how far the tenth and the ninth of ten are apart from it.
Json rates_of(std::vector<double> seconds, std::uint64_t size_bytes) {
  std::ranges::sort(seconds);
  const auto rate = [&](double share) {
    const auto index = static_cast<std::size_t>(share * static_cast<double>(seconds.size() - 1));
    return std::round(static_cast<double>(size_bytes) / seconds[index] / 1e7) / 100;
  };
  return {{"decoded_gb_s", rate(0.5)},
          {"p10_gb_s", rate(0.9)},
          {"p90_gb_s", rate(0.1)},
          {"median_us", std::round(seconds[seconds.size() / 2] * 1e7) / 10}};
}

/// Device memory with an encoded tensor, and buffers that it is decoded to in turn.
class Workbench {
 public:
  Workbench(Device& device, Stream& stream, const Timer& timer)
      : device_(device), stream_(stream), timer_(timer) {
    for (auto& memory : elsewhere_) memory = device.allocate(kCachedBytes);
  }

  void take(const Bytes& weights) {
    weights_ = &weights;
    const std::uint64_t wanted = kRotatedBytes / weights.size() + 1;
    buffers_.resize(std::clamp<std::size_t>(wanted, 2, kMostBuffers));
    for (auto& buffer : buffers_) buffer = device_.allocate(weights.size());
  }
  void take(const Encoded& encoded) {
    encoded_ = device_.allocate(encoded.bytes.size());
    table_ = device_.allocate(encoded.frames.size() * sizeof(BatchedFrame));
    frames_ = encoded.frames;
    stream_.copy_to_device(encoded_->data(), encoded.bytes.data(), encoded.bytes.size());
    const auto table = std::as_bytes(std::span(frames_));
    stream_.copy_to_device(table_->data(), table.data(), table.size());
    stream_.synchronize();
  }

  Json decode(DeviceDecoder& decoder, int repeats) const {
    // 0xA5 where nothing is written.
    const Bytes stale(weights_->size(), std::byte{0xA5});
    for (const auto& buffer : buffers_) {
      stream_.copy_to_device(buffer->data(), stale.data(), stale.size());
    }
    const auto run = [&](const DeviceMemory& buffer) {
      if (timer_.copies()) timer_.copy(elsewhere_[0]->data(), elsewhere_[1]->data(), kCachedBytes);
      return timer_.seconds([&] {
        decoder.decode(stream_, frames_, table_->data(), encoded_->data(), buffer.data());
      });
    };
    for (const auto& buffer : buffers_) run(*buffer);
    std::vector<double> seconds;
    for (int i = 0; i < repeats; ++i) {
      seconds.push_back(run(*buffers_[static_cast<std::size_t>(i) % buffers_.size()]));
    }
    Json result = rates_of(std::move(seconds), weights_->size());
    result["exact"] = exact();
    return result;
  }

  Json copy(int repeats) const {
    const std::uint64_t size_bytes = weights_->size();
    std::vector<double> seconds;
    for (int i = 0; i < repeats + 3; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const DeviceMemory& target = *buffers_[at % buffers_.size()];
      const DeviceMemory& source = *buffers_[(at + 1) % buffers_.size()];
      const double taken =
          timer_.seconds([&] { timer_.copy(target.data(), source.data(), size_bytes); });
      if (i >= 3) seconds.push_back(taken);
    }
    return rates_of(std::move(seconds), size_bytes);
  }

 private:
  bool exact() const {
    Bytes found(weights_->size());
    for (const auto& buffer : buffers_) {
      stream_.copy_to_host(found.data(), buffer->data(), found.size());
      stream_.synchronize();
      if (found != *weights_) return false;
    }
    return true;
  }

  Device& device_;
  Stream& stream_;
  const Timer& timer_;
  std::array<std::unique_ptr<DeviceMemory>, 2> elsewhere_;
  const Bytes* weights_ = nullptr;
  std::vector<std::unique_ptr<DeviceMemory>> buffers_;
  std::unique_ptr<DeviceMemory> encoded_;
  std::unique_ptr<DeviceMemory> table_;
  std::vector<BatchedFrame> frames_;
};

constexpr std::array kShapes = {
    FrameDecodeShape{},
    FrameDecodeShape{4, 5},
    FrameDecodeShape{2, 12},
    FrameDecodeShape{1, 22},
};

/// Warps of a block, blocks at least.
std::string name_of(const FrameDecodeShape& shape) {
  return std::to_string(shape.warps_a_block) + "w" + std::to_string(shape.blocks_at_least) + "b";
}

/// A tensor that is decoded: each level with each of so many shapes.
struct Case {
  std::string tensor;
  Dtype dtype;
  std::uint64_t weights;
  std::vector<std::uint32_t> levels;
  std::size_t shapes;
};

std::vector<Case> cases_of(const Options& options) {
  const std::size_t all = kShapes.size();
  std::vector<Case> cases = {{"block", Dtype::kBf16, options.block, {1, 4, 7}, all},
                             {"matrix", Dtype::kBf16, options.matrix, {1, 4, 7}, all},
                             {"block", Dtype::kF16, options.block, {4}, 1},
                             {"half a block", Dtype::kF32, options.block / 2, {4}, 1},
                             {"block", Dtype::kF8E4M3, options.block, {4}, 1},
                             {"block", Dtype::kF8E5M2, options.block, {4}, 1}};
  for (const int frames : kFrames) {
    const auto weights = static_cast<std::uint64_t>(frames) * kFrameWeights;
    cases.push_back({std::to_string(frames) + " frames", Dtype::kBf16, weights, {4}, 1});
  }
  std::erase_if(cases, [&](const Case& tried) {
    return tried.tensor.find(options.only) == std::string::npos;
  });
  return cases;
}

class Benchmark {
 public:
  Benchmark(Device& device, Stream& stream, const Timer& timer, int repeats)
      : device_(device), stream_(stream), timer_(timer), repeats_(repeats) {}

  void compile() {
    for (const FrameDecodeShape& shape : kShapes) {
      const auto began = std::chrono::steady_clock::now();
      decoders_.push_back(create_cuda_decoder(device_, shape));
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - began;
      result_["compile_s"][name_of(shape)] = std::round(taken.count() * 1e3) / 1e3;
    }
  }

  void run(const Case& tried) {
    const Bytes weights = weights_of(tried.dtype, tried.weights);
    Workbench bench(device_, stream_, timer_);
    bench.take(weights);
    if (timer_.copies()) {
      add({{"tensor", tried.tensor}, {"bytes", weights.size()}, {"what", "copy"}},
          bench.copy(repeats_));
    }
    for (const std::uint32_t level : tried.levels) {
      const Encoded encoded = encode(tried.dtype, level, weights);
      bench.take(encoded);
      for (std::size_t shape = 0; shape < tried.shapes; ++shape) {
        const double ratio =
            static_cast<double>(encoded.bytes.size()) / static_cast<double>(weights.size());
        add({{"tensor", tried.tensor},
             {"bytes", weights.size()},
             {"what", "decode"},
             {"dtype", dtype_torch_name(tried.dtype)},
             {"level", level},
             {"ratio", std::round(ratio * 1e4) / 1e4},
             {"shape", name_of(kShapes[shape])}},
            bench.decode(*decoders_[shape], repeats_));
      }
    }
  }

  const Json& result() const { return result_; }
  bool all_exact() const { return all_exact_; }

 private:
  void add(Json row, const Json& measured) {
    row.update(measured);
    if (row.contains("exact") && !row["exact"].get<bool>()) all_exact_ = false;
    print(row);
    result_["rows"].push_back(std::move(row));
  }

  static void print(const Json& row) {
    const bool decodes = row["what"] == "decode";
    const std::string how = decodes
                                ? row["dtype"].get<std::string>() + " level " +
                                      row["level"].dump() + " " + row["shape"].get<std::string>()
                                : "copy";
    std::printf("%-12s %-32s %8.1f GB/s (%.1f to %.1f) %9.1f us%s\n",
                row["tensor"].get<std::string>().c_str(), how.c_str(),
                row["decoded_gb_s"].get<double>(), row["p10_gb_s"].get<double>(),
                row["p90_gb_s"].get<double>(), row["median_us"].get<double>(),
                !decodes || row["exact"].get<bool>() ? "" : " NOT EXACT");
    std::fflush(stdout);
  }

  Device& device_;
  Stream& stream_;
  const Timer& timer_;
  const int repeats_;
  std::vector<std::unique_ptr<DeviceDecoder>> decoders_;
  Json result_;
  bool all_exact_ = true;
};

int run(const Options& options) {
  const CudaDriverOutcome outcome = load_cuda_driver(options.driver);
  if (const auto* const absence = std::get_if<CudaDriverAbsence>(&outcome)) {
    throw std::runtime_error(absence->message);
  }
  const auto& driver = std::get<CudaDriver>(outcome);
  const auto device =
      create_cuda_device({.driver_library = options.driver, .compiler = options.compiler});
  CudaContextHandle context = nullptr;
  CudaStreamHandle handle = nullptr;
  std::array<char, 256> name{};
  driver.cuDeviceGetName(name.data(), int{name.size()}, 0);
  driver.cuDevicePrimaryCtxRetain(&context, 0);
  driver.cuCtxPushCurrent_v2(context);
  driver.cuStreamCreateWithPriority(&handle, kCudaStreamNonBlocking, 0);
  Stream& stream = device->stream_of(reinterpret_cast<std::uintptr_t>(handle));
  const Timer timer(driver, options.driver, handle);
  Benchmark benchmark(*device, stream, timer, options.repeats);
  benchmark.compile();
  for (const Case& tried : cases_of(options)) benchmark.run(tried);
  Json result = {{"device", name.data()}, {"repeats", options.repeats}};
  result.update(benchmark.result());
  std::printf("%s: %s\n", name.data(), result["compile_s"].dump().c_str());
  if (!options.output.empty()) std::ofstream(options.output) << result.dump(1) << "\n";
  std::printf(benchmark.all_exact() ? "all exact\n" : "NOT EXACT\n");
  return benchmark.all_exact() ? 0 : 1;
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

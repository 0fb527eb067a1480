// Questions: how many bytes of weights does one core encode, decode and verify in a second, by
// type, level and set of kernels, and how many bits does a weight take?
//
// Method: 4 MiB of Gaussian weights of standard deviation 0.02 in RAM, so two frames; one thread;
// medians and spread of repeated runs. Rates are of decoded bytes; `bits_a_weight` counts all of
// the frames.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/units.h"
#include "codec/frame_decoder.h"
#include "codec/frame_encoder.h"
#include "codec/tile_kernels.h"
#include "tensorstream/dtype.h"

namespace tensorstream {
namespace {

constexpr int kRepetitions = 5;
constexpr std::uint64_t kWeightsBytes = 2 * kFrameBytes;

using Bytes = std::vector<std::byte>;

/// Gaussian weights whose exponents are those of the type; what is below its mantissa is cut off.
Bytes weights_of(Dtype dtype) {
  std::mt19937_64 random(1);
  // The range of the fp8 types ends near the deviation that other weights have.
  std::normal_distribution<float> normal(0, dtype_bits(dtype) == 8 ? 1.0F : 0.02F);
  const std::uint32_t element_bytes = dtype_bits(dtype) / 8;
  Bytes bytes;
  while (bytes.size() < kWeightsBytes) {
    const float value = normal(random);
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t sign = bits >> 31U;
    const int exponent = static_cast<int>((bits >> 23U) & 0xFFU) - 127;
    if (dtype == Dtype::kBf16) bits >>= 16U;
    if (dtype == Dtype::kF16) {
      bits = (sign << 15U) | (static_cast<std::uint32_t>(std::max(exponent + 15, 0)) << 10U) |
             ((bits >> 13U) & 0x3FFU);
    }
    if (dtype == Dtype::kF8E4M3) {
      bits = (sign << 7U) | (static_cast<std::uint32_t>(std::max(exponent + 7, 0)) << 3U) |
             ((bits >> 20U) & 7U);
    }
    if (dtype == Dtype::kF8E5M2) {
      bits = (sign << 7U) | (static_cast<std::uint32_t>(std::max(exponent + 15, 0)) << 2U) |
             ((bits >> 21U) & 3U);
    }
    for (std::uint32_t i = 0; i < element_bytes; ++i) {
      bytes.push_back(static_cast<std::byte>(bits >> (8 * i)));
    }
  }
  return bytes;
}

struct Frames {
  std::vector<Bytes> frames;
  std::uint64_t size_bytes = 0;
};

std::span<const std::byte> part(const Bytes& weights, std::uint64_t index) {
  return std::span(weights).subspan(index * kFrameBytes, kFrameBytes);
}

void encode_all(FrameEncoder& encoder, const Bytes& weights, Frames& frames) {
  frames.size_bytes = 0;
  for (std::uint64_t index = 0; index < kWeightsBytes / kFrameBytes; ++index) {
    frames.size_bytes += encoder.encode(part(weights, index), frames.frames[index]);
  }
}

Frames room() { return {{kWeightsBytes / kFrameBytes, Bytes(frame_bound(kFrameBytes))}, 0}; }

void encode(benchmark::State& state, Dtype dtype, std::uint32_t level, const TileKernels* kernels) {
  const Bytes weights = weights_of(dtype);
  FrameEncoder encoder(dtype, CompressionLevel(level), *kernels);
  Frames frames = room();
  for (const auto _ : state) encode_all(encoder, weights, frames);
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kWeightsBytes));
  state.counters["bits_a_weight"] =
      static_cast<double>(frames.size_bytes) * dtype_bits(dtype) / kWeightsBytes;
}

void decode(benchmark::State& state, Dtype dtype, std::uint32_t level, const TileKernels* kernels) {
  const Bytes weights = weights_of(dtype);
  FrameEncoder encoder(dtype, CompressionLevel(level), *kernels);
  Frames frames = room();
  encode_all(encoder, weights, frames);
  Bytes decoded(kFrameBytes);
  for (const auto _ : state) {
    for (const Bytes& frame : frames.frames) {
      const auto view = std::get<FrameView>(FrameView::parse(frame));
      if (decode_frame(view, decoded, *kernels)) state.SkipWithError("a frame is damaged");
      benchmark::DoNotOptimize(decoded.data());
    }
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kWeightsBytes));
}

/// What the host does where a GPU decodes.
void verify(benchmark::State& state) {
  const Bytes weights = weights_of(Dtype::kBf16);
  FrameEncoder encoder(Dtype::kBf16, CompressionLevel(CompressionLevel::kSmallest));
  Frames frames = room();
  encode_all(encoder, weights, frames);
  for (const auto _ : state) {
    for (const Bytes& frame : frames.frames) {
      const auto view = std::get<FrameView>(FrameView::parse(frame));
      if (verify_frame(view)) state.SkipWithError("a frame is damaged");
    }
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kWeightsBytes));
}
BENCHMARK(verify)->Repetitions(kRepetitions)->ReportAggregatesOnly();

void register_runs(Dtype dtype, std::uint32_t level, const TileKernels& kernels) {
  const std::string name = "/" + std::string(dtype_torch_name(dtype)) +
                           "/level:" + std::to_string(level) + "/" + kernels.name();
  benchmark::RegisterBenchmark(("encode" + name).c_str(), encode, dtype, level, &kernels)
      ->Repetitions(kRepetitions)
      ->ReportAggregatesOnly();
  benchmark::RegisterBenchmark(("decode" + name).c_str(), decode, dtype, level, &kernels)
      ->Repetitions(kRepetitions)
      ->ReportAggregatesOnly();
}

void register_all() {
  for (const TileKernels* kernels : {&portable_kernels(), avx2_kernels()}) {
    if (kernels == nullptr) continue;
    for (const std::uint32_t level : {CompressionLevel::kFastest, CompressionLevel::kBalanced}) {
      register_runs(Dtype::kBf16, level, *kernels);
    }
    for (const Dtype dtype :
         {Dtype::kBf16, Dtype::kF16, Dtype::kF32, Dtype::kF8E4M3, Dtype::kF8E5M2}) {
      register_runs(dtype, CompressionLevel::kSmallest, *kernels);
    }
  }
}

}  // namespace
}  // namespace tensorstream

int main(int count, char** arguments) {
  tensorstream::register_all();
  benchmark::Initialize(&count, arguments);
  if (benchmark::ReportUnrecognizedArguments(count, arguments)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

// What a GPU's decoder asks of its driver, seen by one that looks.
#include "codec/cuda_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/log.h"
#include "codec/frames.h"
#include "device/cuda_device.h"
#include "fake_cuda/fake_cuda.h"

namespace tensorstream {
namespace {

using ::testing::HasSubstr;

class CudaDecoderTest : public ::testing::Test {
 protected:
  CudaDecoderTest() {
    fake_.reset();
    set_log_sink([](LogLevel, std::string_view) {});
  }
  ~CudaDecoderTest() override {
    set_log_sink({});
    fake_.reset();
  }

  static std::unique_ptr<Device> create() {
    return create_cuda_device(
        {.driver_library = FakeCuda::path(), .compiler = FakeCuda::compiler()});
  }

  static std::unique_ptr<DeviceMemory> on_device(Device& device, std::span<const std::byte> bytes) {
    auto memory = device.allocate(bytes.size());
    device.caller_stream().copy_to_device(memory->data(), bytes.data(), bytes.size());
    device.caller_stream().synchronize();
    return memory;
  }

  const FakeCuda fake_;
};

TEST_F(CudaDecoderTest, WithoutACompilerThereIsAReason) {
  const auto device = create_cuda_device(
      {.driver_library = FakeCuda::path(), .compiler = {"/nowhere/libnvrtc.so.13", {}}});
  try {
    create_device_decoder(*device);
    FAIL();
  } catch (const UnsupportedError& error) {
    EXPECT_THAT(error.what(), HasSubstr("nvidia-cuda-nvrtc"));
  }
}

TEST_F(CudaDecoderTest, DecodersOfADeviceShareAModule) {
  const auto device = create();
  const auto one = create_device_decoder(*device);
  const auto other = create_device_decoder(*device);
  EXPECT_EQ(fake_.get("modules"), 1);
}

TEST_F(CudaDecoderTest, EachShapeDecodes) {
  const auto device = create();
  for (const Dtype dtype : kFloats) {
    const Bytes weights = gaussian_weights(dtype, 300'000, usual_sigma(dtype));
    const std::vector<BatchedFrame> frames = {{0, 0}};
    const auto table = on_device(*device, std::as_bytes(std::span(frames)));
    for (const std::uint32_t level : {1U, 4U, 7U}) {
      const auto encoded = on_device(*device, encode_frame(dtype, weights, level));
      for (const FrameDecodeShape& shape :
           {FrameDecodeShape{4, 5}, FrameDecodeShape{2, 12}, FrameDecodeShape{1, 22}}) {
        const auto decoder = create_cuda_decoder(*device, shape);
        const auto decoded = on_device(*device, Bytes(weights.size()));
        Bytes found(weights.size());
        Stream& stream = device->caller_stream();
        decoder->decode(stream, frames, table->data(), encoded->data(), decoded->data());
        stream.copy_to_host(found.data(), decoded->data(), found.size());
        stream.synchronize();
        EXPECT_TRUE(found == weights) << shape.warps_a_block << " warps, level " << level;
      }
    }
  }
}

TEST_F(CudaDecoderTest, MoreFramesThanALaunchHasRows) {
  const auto device = create();
  const auto decoder = create_device_decoder(*device);
  const Bytes bytes = random_bytes(16);
  const Bytes frame = encode_frame(Dtype::kU8, bytes);
  std::vector<BatchedFrame> frames;
  for (std::uint64_t i = 0; i < kMostRows + 2; ++i) frames.push_back({0, 16 * i});
  const auto encoded = on_device(*device, frame);
  const auto table = on_device(*device, std::as_bytes(std::span(frames)));
  const auto decoded = on_device(*device, Bytes(16 * frames.size()));
  Stream& stream = device->caller_stream();
  decoder->decode(stream, frames, table->data(), encoded->data(), decoded->data());
  EXPECT_EQ(fake_.calls("cuLaunchKernel"), 2);
  Bytes found(16 * frames.size());
  stream.copy_to_host(found.data(), decoded->data(), found.size());
  stream.synchronize();
  for (std::size_t i = 0; i < frames.size(); ++i) {
    ASSERT_EQ(std::memcmp(found.data() + 16 * i, bytes.data(), 16), 0) << i;
  }
}

/// Runs of frames of 16 bytes each, with tables and bytes of their own.
TEST_F(CudaDecoderTest, RunsShareLaunches) {
  struct Run {
    std::vector<BatchedFrame> frames;
    std::unique_ptr<DeviceMemory> table;
    std::unique_ptr<DeviceMemory> encoded;
  };
  const auto device = create();
  const auto decoder = create_device_decoder(*device);
  Bytes expected;
  std::vector<Run> made;
  std::vector<FrameRun> runs;
  for (std::uint64_t number = 0; number < 2 * kMostRuns + 1; ++number) {
    const Bytes bytes = random_bytes(16, number);
    Run run;
    for (std::uint64_t i = 0; i < number % 4; ++i) {  // some have none
      run.frames.push_back({0, expected.size()});
      expected.insert(expected.end(), bytes.begin(), bytes.end());
    }
    run.table = on_device(*device, run.frames.empty() ? std::span<const std::byte>(bytes)
                                                      : std::as_bytes(std::span(run.frames)));
    run.encoded = on_device(*device, encode_frame(Dtype::kU8, bytes));
    made.push_back(std::move(run));
  }
  for (const Run& run : made) runs.push_back({run.frames, run.table->data(), run.encoded->data()});
  const auto decoded = on_device(*device, Bytes(expected.size()));
  Stream& stream = device->caller_stream();
  decoder->decode(stream, runs, decoded->data());
  EXPECT_EQ(fake_.calls("cuLaunchKernel"), 2) << "48 runs have frames";
  Bytes found(expected.size());
  stream.copy_to_host(found.data(), decoded->data(), found.size());
  stream.synchronize();
  EXPECT_EQ(found, expected);
}

TEST_F(CudaDecoderTest, ATargetThatIsTooSmallLosesTheContext) {
  const auto device = create();
  const auto decoder = create_device_decoder(*device);
  const Bytes weights = gaussian_weights(Dtype::kBf16, 100'000, 0.02);
  const std::vector<BatchedFrame> frames = {{0, 0}};
  const auto encoded = on_device(*device, encode_frame(Dtype::kBf16, weights));
  const auto table = on_device(*device, std::as_bytes(std::span(frames)));
  const auto decoded = on_device(*device, Bytes(weights.size() - 4096));
  Stream& stream = device->caller_stream();
  decoder->decode(stream, frames, table->data(), encoded->data(), decoded->data());
  const auto look_twice = [&] {
    stream.synchronize();  // may be over before the work is
    stream.synchronize();
  };
  EXPECT_THROW(look_twice(), CudaError);
}

}  // namespace
}  // namespace tensorstream

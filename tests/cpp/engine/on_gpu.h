// The engine on a GPU: the fake driver everywhere, the real one where there is one. Device memory
// is looked at by copies alone.
#pragma once

#include <gtest/gtest.h>

#include <list>
#include <memory>
#include <ostream>
#include <string>

#include "device/cuda_device.h"
#include "device/gpu_required.h"
#include "device/real_cuda.h"
#include "engine/open_engine.h"
#include "engine/test_model.h"
#include "fake_cuda/fake_cuda.h"

namespace tensorstream {

struct Gpu {
  std::string name;
  CudaDeviceOptions options;
};

inline std::ostream& operator<<(std::ostream& out, const Gpu& gpu) { return out << gpu.name; }

inline CudaDeviceOptions on_fake(Checking checking, std::uint32_t longest_delay_us = 50) {
  return {.checking = checking,
          .longest_delay_us = longest_delay_us,
          .driver_library = FakeCuda::path(),
          .compiler = FakeCuda::compiler(),
          .cufile = FakeCuda::cufile()};
}

/// Reads the places of leased groups back, in the order of a stream, and compares them afterwards.
class ReadBack {
 public:
  ReadBack(Engine& engine, const TestModel& model, Stream& stream)
      : engine_(engine), model_(model), stream_(stream) {}

  bool use(GroupId group) {
    if (!engine_.acquire(group, stream_)) return false;
    try {
      for (const TensorPlace& place : engine_.places(group)) read(place);
    } catch (const CudaError&) {
      engine_.release(group, stream_);
      throw;
    }
    engine_.release(group, stream_);
    return true;
  }
  void pass() {
    for (GroupId group = 0; group < model_.group_count(); ++group) {
      ASSERT_TRUE(use(group)) << "group " << group;
    }
  }
  /// How many tensors were wrong since the last time.
  int wrong() {
    stream_.synchronize();
    int count = 0;
    for (const Read& read : read_) count += same_bytes(read.bytes, *read.truth) ? 0 : 1;
    read_.clear();
    return count;
  }

 private:
  struct Read {
    Bytes bytes;
    std::shared_ptr<const Bytes> truth;
  };
  void read(const TensorPlace& place) {
    const auto truth = model_.bytes(place.tensor);
    std::list<Read> one;
    one.push_back({Bytes(truth->size()), truth});
    stream_.copy_to_host(one.back().bytes.data(), place.data, place.size_bytes);
    read_.splice(read_.end(), one);
  }
  Engine& engine_;
  const TestModel& model_;
  Stream& stream_;
  std::list<Read> read_;
};

/// A test on each GPU.
class OnGpu : public ::testing::TestWithParam<Gpu> {
 protected:
  void SetUp() override {
    fake_.reset();
    if (GetParam().options.driver_library == FakeCuda::path()) {
      device_ = create_cuda_device(GetParam().options);
    } else if (const auto reason = why_no_real_cuda()) {
      ASSERT_FALSE(gpu_is_required()) << *reason;
      GTEST_SKIP() << *reason;
    } else {
      device_ = create_cuda_device(GetParam().options);
    }
    stream_ = device_->create_stream();
  }

  static void bring_all_home(Engine& engine) {
    for (GroupId group = 0; group < engine.groups().size(); ++group) engine.bring_home(group);
  }

  const FakeCuda fake_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
};

}  // namespace tensorstream

#define TS_ON_EACH_GPU(suite)                                                               \
  INSTANTIATE_TEST_SUITE_P(FakeCuda, suite,                                                 \
                           ::testing::Values(Gpu{"Unchecked", on_fake(Checking::kOff)},     \
                                             Gpu{"Checked", on_fake(Checking::kOn)}),       \
                           [](const auto& instance) { return instance.param.name; });       \
  INSTANTIATE_TEST_SUITE_P(                                                                 \
      RealCuda, suite,                                                                      \
      ::testing::Values(Gpu{"Unchecked", {}}, Gpu{"Checked", {.checking = Checking::kOn}}), \
      [](const auto& instance) { return instance.param.name; })

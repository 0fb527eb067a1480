// An engine under a ceiling, on the fake driver, and torch's requests.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>

#include "base/clock.h"
#include "device/cuda_device.h"
#include "engine/ceiling.h"
#include "engine/open_engine.h"
#include "engine/test_model.h"
#include "fake_cuda/fake_cuda.h"

namespace tensorstream {

class CeilingTest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kGroupBytes = 8192;  // what a group of 6000 bytes takes
  static constexpr int kIndex = 0;

  CeilingTest() { fake_.reset(); }
  ~CeilingTest() override {
    leave();
    device_.reset();
    EXPECT_EQ(fake_.get("leaked"), 0);
    EXPECT_EQ(fake_.held(), 0);
  }

  /// An engine whose weights are at home and all loaded once, under `limit_bytes`.
  void open(std::uint64_t limit_bytes, Pressure pressure) {
    if (device_ == nullptr) {
      device_ = create_cuda_device(
          {.checking = Checking::kOn, .longest_delay_us = 20, .driver_library = FakeCuda::path()});
    }
    EngineOptions options;
    options.piece_bytes = 4096;
    options.rates.link_bytes_per_second = link_bytes_per_second_;
    options.reserved_share = reserved_share_;
    options.residents =
        pressure == Pressure::kStrict ? ResidentUse::kSettled : ResidentUse::kLeased;
    budget_ = Budget::create(limit_bytes);
    engine_ = std::make_unique<Engine>(*device_, budget_, spec_, options);
    for (GroupId group = 0; group < model_.group_count(); ++group) engine_->bring_home(group);
    stream_ = device_->create_stream();
    pass();
    stream_->synchronize();
    // What is still loaded ahead does not give way: until the last load is counted.
    ASSERT_TRUE(stays_false([loads = engine_->statistics().loads, this] {
      return engine_->statistics().loads < loads;
    }));
    ceiling_ =
        std::make_shared<Ceiling>(device_, budget_, *engine_, Ceiling::Options{pressure, kIndex});
    ceiling_->enter();
  }

  /// Of the shape of Llama, beside a link that is as much slower: leases would take longer than
  /// loads.
  void take_llama_like() {
    model_ = llama_like_model();
    spec_ = model_.in_memory();
    link_bytes_per_second_ = 54e6;
  }

  /// As the model is used: its bytes are read back and are right.
  void pass() {
    for (GroupId group = 0; group < model_.group_count(); ++group) use(group);
  }
  void use(GroupId group) {
    ASSERT_TRUE(engine_->acquire(group, *stream_)) << "group " << group;
    Bytes bytes(model_.size_bytes(group));
    stream_->copy_to_host(bytes.data(), engine_->places(group)[0].data, bytes.size());
    stream_->synchronize();
    EXPECT_EQ(bytes, *model_.bytes(group)) << "group " << group;
    engine_->release(group, *stream_);
  }

  /// A step of training in which torch takes so much for a while.
  void train(std::uint64_t taken_bytes) {
    for (const GroupId group : llama_like_step()) use(group);
    void* const data = taken_bytes == 0 ? nullptr : alloc(taken_bytes);
    if (data != nullptr) free(data);
    static_cast<void>(ceiling_->forward_ended());
  }

  /// A pass for so large a share of which the link is busy, by its rate, and the beginning of the
  /// next.
  void timed_pass(double busy_share) {
    double streamed_bytes = 0;
    for (GroupId group = 0; group < model_.group_count(); ++group) {
      const auto bytes = static_cast<double>(model_.size_bytes(group));
      if (!engine_->has_own_place(group)) streamed_bytes += bytes;
    }
    const std::chrono::duration<double> time(streamed_bytes / link_bytes_per_second_ / busy_share);
    const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(time);
    engine_->note_pass_begun();
    pass();
    std::this_thread::sleep_until(end);
    engine_->note_pass_begun();
  }
  /// How many groups follow each other of which none has a place of its own.
  int longest_run_of_streamed() const {
    int longest = 0;
    int run = 0;
    for (GroupId group = 0; group < model_.group_count(); ++group) {
      run = engine_->has_own_place(group) ? 0 : run + 1;
      longest = std::max(longest, run);
    }
    return longest;
  }

  void leave() {
    if (ceiling_) ceiling_->leave();
    if (ceiling_) ceiling_->detach();
    ceiling_.reset();
    stream_.reset();
    engine_.reset();
  }

  /// By the driver's count.
  std::uint64_t on_device() const { return total_bytes_ - device_->free_bytes(); }
  void set_total(std::uint64_t bytes) {
    total_bytes_ = bytes;
    fake_.set("total_bytes", static_cast<long long>(bytes));
  }
  static void* alloc(std::uint64_t size_bytes) {
    return ts_torch_alloc(static_cast<std::int64_t>(size_bytes), kIndex, nullptr);
  }
  static void free(void* data) { ts_torch_free(data, 0, kIndex, nullptr); }

  const FakeCuda fake_;
  std::uint64_t total_bytes_ = 1_GiB;
  double link_bytes_per_second_ = 5e9;
  double reserved_share_ = 0;
  TestModel model_ = equal_model(8, 6000);
  ModelSpec spec_ = model_.in_memory();
  std::uint64_t smallest_ = smallest_budget_of(spec_);
  std::shared_ptr<Device> device_;
  std::shared_ptr<Budget> budget_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Stream> stream_;
  std::shared_ptr<Ceiling> ceiling_;
};

}  // namespace tensorstream

// What pinned memory and the staging ring do where the CUDA driver refuses or fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "device/cuda_device.h"
#include "device/gate.h"
#include "fake_cuda/fake_cuda.h"
#include "made_bytes/weights.h"
#include "memory/pinned_memory.h"
#include "memory/staging_ring.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::uint64_t kPage = page_size_bytes();

class CudaMemoryFailure : public ::testing::Test {
 protected:
  CudaMemoryFailure() {
    fake_.reset();
    set_log_sink([this](LogLevel level, std::string_view text) {
      if (level == LogLevel::kWarning) warnings_.emplace_back(text);
      if (level == LogLevel::kError) errors_.emplace_back(text);
    });
  }
  ~CudaMemoryFailure() override {
    set_log_sink({});
    fake_.reset();
  }

  static std::unique_ptr<Device> create() {
    return create_cuda_device(
        {.checking = Checking::kOn, .longest_delay_us = 20, .driver_library = FakeCuda::path()});
  }
  static std::vector<std::byte> read(Device& device, const DeviceMemory& memory) {
    std::vector<std::byte> bytes(memory.size_bytes());
    device.caller_stream().copy_to_host(bytes.data(), memory.data(), bytes.size());
    device.caller_stream().synchronize();
    return bytes;
  }

  const FakeCuda fake_;
  const std::shared_ptr<Budget> budget_ = Budget::create(100 * kPage);
  std::vector<std::string> warnings_;
  std::vector<std::string> errors_;
};

TEST_F(CudaMemoryFailure, APieceThatIsRefusedEndsThePinnedPart) {
  for (const int nth : {1, 2, 3}) {
    fake_.reset();
    warnings_.clear();
    const auto device = create();
    fake_.fail("cuMemHostRegister_v2", nth, CudaResult::kOutOfMemory);
    PinnedMemory memory(*device, 3 * kPage, "weights", {.piece_bytes = kPage});
    EXPECT_EQ(memory.pinned_bytes(), static_cast<std::uint64_t>(nth - 1) * kPage);
    EXPECT_EQ(fake_.get("registrations"), nth - 1);
    EXPECT_THAT(warnings_, ElementsAre(HasSubstr("for weights are pinned")));
    std::ranges::copy(numbered_bytes(3 * kPage, 1), memory.bytes().begin());
    const auto target = device->allocate(3 * kPage);
    const auto stream = device->create_stream();
    for (std::uint64_t offset = 0; offset < memory.size_bytes();) {
      const std::uint64_t end = memory.piece_end(offset);
      stream->copy_to_device(target->data() + offset, memory.data() + offset, end - offset);
      offset = end;
    }
    stream->synchronize();
    EXPECT_TRUE(read(*device, *target) == numbered_bytes(3 * kPage, 1));
  }
  EXPECT_THAT(errors_, IsEmpty());
}

TEST_F(CudaMemoryFailure, ACopyOverASeamIsRefused) {
  const auto device = create();
  const PinnedMemory memory(*device, 2 * kPage, "weights", {.piece_bytes = kPage});
  const auto target = device->allocate(2 * kPage);
  const auto stream = device->create_stream();
  EXPECT_THROW(stream->copy_to_device(target->data(), memory.data(), kPage + 1), CudaError);
  EXPECT_NO_THROW(stream->copy_to_device(target->data(), memory.data(), kPage));
  EXPECT_EQ(memory.device_address(kPage + 3), memory.data() + kPage + 3);
}

TEST_F(CudaMemoryFailure, ARegistrationThatBreaksIsAnErrorAndLeavesNothing) {
  const auto device = create();
  for (const char* const entry : {"cuMemHostRegister_v2", "cuMemHostGetDevicePointer_v2"}) {
    fake_.fail(entry, 2, CudaResult::kInvalidContext);
    EXPECT_THROW(
        PinnedMemory(*device, 3 * kPage, "weights", {.budget = budget_, .piece_bytes = kPage}),
        CudaError);
    EXPECT_EQ(fake_.get("registrations"), 0);
    EXPECT_EQ(budget_->used_bytes(), 0U);
  }
}

TEST_F(CudaMemoryFailure, ARingOfWhichAPartIsPinnedIsRight) {
  const auto device = create();
  const auto target = device->allocate(40 * kPage);
  const auto stream = device->create_stream();
  fake_.fail("cuMemHostRegister_v2", 3, CudaResult::kOperatingSystem);
  StagingRing ring(*device, {.piece_bytes = kPage, .pieces = 4});
  EXPECT_FALSE(ring.is_pinned());
  EXPECT_EQ(fake_.get("registrations"), 2);
  const auto source = numbered_bytes(40 * kPage, 6);
  for (std::uint64_t offset = 0; offset < source.size(); offset += kPage) {
    StagingRing::Piece piece = ring.take();
    std::ranges::copy(std::span(source).subspan(offset, kPage), piece.bytes().begin());
    piece.copy_to_device(*stream, target->data() + offset, piece.bytes());
  }
  stream->synchronize();
  EXPECT_TRUE(read(*device, *target) == source);
}

/// Copies a piece of 0x11 while the stream is held up and a call fails that tells of its end, and
/// fills the piece with 0x22 as soon as it can be taken again.
class CudaUntoldCopy : public CudaMemoryFailure {
 protected:
  CudaUntoldCopy()
      : device_(create()),
        target_(device_->allocate(kPage)),
        stream_(device_->create_stream()),
        ring_(std::in_place, *device_, StagingRingOptions{.piece_bytes = kPage, .pieces = 1}) {}

  void copy_untold() {
    StagingRing::Piece piece = ring_->take();
    std::ranges::fill(piece.bytes(), std::byte{0x11});
    stream_->run([] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); });
    fake_.fail("cuEventRecord", 1, CudaResult::kInvalidContext);
    EXPECT_THROW(piece.copy_to_device(*stream_, target_->data(), piece.bytes()), CudaError);
  }
  void expect_target() {
    stream_->synchronize();
    EXPECT_THAT(read(*device_, *target_), Each(std::byte{0x11}));
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<DeviceMemory> target_;
  std::unique_ptr<Stream> stream_;
  std::optional<StagingRing> ring_;
};

TEST_F(CudaUntoldCopy, IsWaitedForBeforeThePieceIsUsedAgain) {
  copy_untold();
  std::ranges::fill(ring_->take().bytes(), std::byte{0x22});
  expect_target();
}

TEST_F(CudaUntoldCopy, KeepsItsPieceUntilItCanBeWaitedFor) {
  copy_untold();
  for (int i = 0; i < 3; ++i) {
    fake_.fail("cuStreamSynchronize", 1, CudaResult::kInvalidContext);
    EXPECT_THROW(static_cast<void>(ring_->take()), CudaError);
  }
  std::ranges::fill(ring_->take().bytes(), std::byte{0x22});
  expect_target();
}

TEST_F(CudaUntoldCopy, IsWaitedForBeforeTheNextOfThePiece) {
  const auto other_target = device_->allocate(kPage);
  const auto other_stream = device_->create_stream();
  {
    StagingRing::Piece piece = ring_->take();
    std::ranges::fill(piece.bytes(), std::byte{0x11});
    stream_->run([] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); });
    fake_.fail("cuEventRecord", 1, CudaResult::kInvalidContext);
    EXPECT_THROW(piece.copy_to_device(*stream_, target_->data(), piece.bytes()), CudaError);
    piece.copy_to_device(*other_stream, other_target->data(), piece.bytes());
  }
  std::ranges::fill(ring_->take().bytes(), std::byte{0x22});
  expect_target();
  ring_.reset();
}

TEST_F(CudaUntoldCopy, IsWaitedForBeforeTheRingGoes) {
  copy_untold();
  ring_.reset();
  expect_target();
  EXPECT_THAT(errors_, IsEmpty());
}

TEST_F(CudaUntoldCopy, IsDoneAfterADrainSoThatItsStreamMayGo) {
  for (const char* const also_failing : {"", "cuStreamSynchronize"}) {
    errors_.clear();
    copy_untold();
    fake_.fail(also_failing, 1, CudaResult::kInvalidContext);
    ring_->drain();
    EXPECT_EQ(errors_.empty(), std::string(also_failing).empty());
    stream_.reset();
    stream_ = device_->create_stream();
    std::ranges::fill(ring_->take().bytes(), std::byte{0x22});
    expect_target();
  }
  stream_.reset();
}

TEST_F(CudaUntoldCopy, ARingThatCannotWaitByItsEventWaitsByTheStream) {
  {
    StagingRing::Piece piece = ring_->take();
    std::ranges::fill(piece.bytes(), std::byte{0x11});
    stream_->run([] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); });
    piece.copy_to_device(*stream_, target_->data(), piece.bytes());
  }
  fake_.fail("cuEventSynchronize", 1, CudaResult::kInvalidContext);
  ring_.reset();
  expect_target();
  EXPECT_THAT(errors_, ElementsAre(HasSubstr("cuEventSynchronize")));
}

/// Everything that memory for a device does, once, on a device of its own.
void use_everything(const std::shared_ptr<Budget>& budget) {
  const auto device = create_cuda_device(
      {.checking = Checking::kOn, .longest_delay_us = 20, .driver_library = FakeCuda::path()});
  const auto target = device->allocate(8 * kPage);
  PinnedMemory memory(*device, 3 * kPage - 100, "weights",
                      {.budget = budget, .piece_bytes = kPage});
  const auto source = numbered_bytes(memory.size_bytes(), 1);
  std::ranges::copy(source, memory.bytes().begin());
  const auto stream = device->create_stream();
  const auto other = device->create_stream();
  StagingRing ring(*device, {.piece_bytes = kPage, .pieces = 2, .budget = budget});
  for (std::uint64_t offset = 0; offset < memory.size_bytes();) {
    const std::uint64_t end = memory.piece_end(offset);
    stream->copy_to_device(target->data() + offset, memory.data() + offset, end - offset);
    offset = end;
  }
  for (std::uint64_t i = 3; i < 8; ++i) {
    StagingRing::Piece piece = ring.take();
    std::ranges::copy(numbered_bytes(kPage, static_cast<int>(i)), piece.bytes().begin());
    piece.copy_to_device(*stream, target->data() + i * kPage, piece.bytes().first(100));
    piece.copy_to_device(*other, target->data() + i * kPage + 100, piece.bytes().subspan(100));
  }
  other->synchronize();
  stream->synchronize();
  std::vector<std::byte> back;
  for (std::uint64_t i = 0; i < 8; ++i) {
    StagingRing::Piece piece = ring.take();
    const auto bytes = piece.copy_to_host(*stream, target->data() + i * kPage, kPage);
    back.insert(back.end(), bytes.begin(), bytes.end());
  }
  EXPECT_TRUE(same_bytes(std::span(back).first(source.size()), source));
  for (std::uint64_t i = 3; i < 8; ++i) {
    EXPECT_TRUE(same_bytes(std::span(back).subspan(i * kPage, kPage),
                           numbered_bytes(kPage, static_cast<int>(i))));
  }
}

const std::vector<std::string>& entries() {
  static const std::vector<std::string> kEntries = {
#define TS_NAME_OF_ENTRY(name, parameters) #name,
      TS_CUDA_DRIVER_ENTRIES(TS_NAME_OF_ENTRY)
#undef TS_NAME_OF_ENTRY
  };
  return kEntries;
}

class CudaMemoryEachCall : public CudaMemoryFailure,
                           public ::testing::WithParamInterface<CudaResult> {};

/// Each call that is made fails once: bytes are right, or there is an error of the library or a
/// logged one; nothing stays charged, and nothing held but by a release that failed.
TEST_P(CudaMemoryEachCall, MayFail) {
  use_everything(budget_);
  EXPECT_EQ(fake_.held() + fake_.get("leaked"), 0);
  std::vector<long long> calls;
  for (const std::string& entry : entries()) calls.push_back(fake_.calls(entry.c_str()));
  for (std::size_t i = 0; i < entries().size(); ++i) {
    for (long long nth = 1; nth <= calls[i]; nth += nth > 16 && nth < calls[i] - 16 ? 7 : 1) {
      SCOPED_TRACE(entries()[i] + " call " + std::to_string(nth));
      fake_.reset();
      errors_.clear();
      warnings_.clear();
      fake_.fail(entries()[i].c_str(), static_cast<int>(nth), GetParam());
      bool raised = false;
      try {
        use_everything(budget_);
      } catch (const Error& error) {
        raised = true;
        EXPECT_NE(std::string(error.what()), "");
      }
      EXPECT_TRUE(raised || !errors_.empty() || !warnings_.empty());
      EXPECT_EQ(budget_->used_bytes(), 0U);
      if (errors_.empty()) {
        EXPECT_EQ(fake_.held() + fake_.get("leaked"), 0);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Results, CudaMemoryEachCall,
                         ::testing::Values(CudaResult::kInvalidContext, CudaResult::kOutOfMemory));

}  // namespace
}  // namespace tensorstream

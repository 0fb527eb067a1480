#include "device/cuda_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <functional>
#include <string>
#include <thread>
#include <variant>

#include "base/log.h"
#include "base/units.h"
#include "device/gate.h"
#include "fake_cuda/fake_cuda.h"
#include "platform/numa.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// A device on the fake driver, and what the library says meanwhile.
class FakeCudaDevice : public ::testing::Test {
 protected:
  FakeCudaDevice() {
    fake_.reset();
    set_log_sink([this](LogLevel level, std::string_view text) {
      (level == LogLevel::kError ? errors_ : notes_).emplace_back(text);
    });
  }
  ~FakeCudaDevice() override {
    EXPECT_EQ(fake_.get("leaked"), 0);
    EXPECT_EQ(fake_.held(), 0);
    set_log_sink({});
  }

  static std::unique_ptr<Device> create(CudaDeviceOptions options = {}) {
    options.driver_library = FakeCuda::path();
    return create_cuda_device(options);
  }
  static CudaDriver driver() { return std::get<CudaDriver>(load_cuda_driver(FakeCuda::path())); }
  static std::vector<std::byte> read(Device& device, const DeviceMemory& memory) {
    std::vector<std::byte> bytes(memory.size_bytes());
    device.caller_stream().copy_to_host(bytes.data(), memory.data(), bytes.size());
    device.caller_stream().synchronize();
    return bytes;
  }

  const FakeCuda fake_;
  std::vector<std::string> errors_;
  std::vector<std::string> notes_;
};

/// In a child the driver of its parent does not work, and may do anything.
TEST_F(FakeCudaDevice, AForkedChildLetsGoOfAllWithoutTheDriver) {
  std::vector<std::byte> host(4096);
  std::unique_ptr<Device> device = create();
  std::unique_ptr<Stream> stream = device->create_stream();
  std::unique_ptr<Event> event = device->create_event();
  std::unique_ptr<DeviceMemory> memory = device->allocate(512);
  std::unique_ptr<HostRegistration> pinned = device->try_register_host(host);
  ASSERT_NE(pinned, nullptr);
  const long long before = fake_.get("calls");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::alarm(20);  // the driver's threads, which a call may wait for, are not here
    pinned = nullptr;
    memory = nullptr;
    event = nullptr;
    stream = nullptr;
    device = nullptr;
    ::_exit(fake_.get("calls") == before ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(FakeCudaDevice, IsTheOneOfItsIndex) {
  fake_.set("devices", 2);
  const auto device = create({.index = 1});
  EXPECT_EQ(device->name(), "cuda:1");
  EXPECT_EQ(device->total_bytes(), 1_GiB);
  EXPECT_EQ(device->free_bytes(), 1_GiB);
  EXPECT_FALSE(device->host_accessible());
  EXPECT_EQ(device->numa_node(), numa_node_of_pci_device("0000:01:00.0", ""));
}

TEST_F(FakeCudaDevice, LargeMemoryCostsWhatItHolds) {
  const auto device = create();
  const auto memory = device->allocate(8_MiB);
  EXPECT_EQ(device->free_bytes(), 1_GiB - 8_MiB);
  EXPECT_EQ(fake_.calls("cuMemAlloc_v2"), 1);
  const auto small = device->allocate(1000);
  EXPECT_EQ(fake_.get("allocations"), 2);
  EXPECT_LE(device->free_bytes(), 1_GiB - 8_MiB - 1000);
}

TEST_F(FakeCudaDevice, MemoryThatIsNotThereIsABudgetErrorWithTheNumbers) {
  const auto device = create();
  const auto most = device->allocate(1_GiB - 3_MiB);
  try {
    device->allocate(4_MiB);
    FAIL();
  } catch (const BudgetError& error) {
    EXPECT_EQ(error.needed_bytes(), 4_MiB);
    EXPECT_EQ(error.budget_bytes(), 3_MiB);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("cuda:0 (Fake GPU 0, 0000:00:00.0)"),
                                    HasSubstr("4.00 MiB"), HasSubstr("3.00 MiB of 1.00 GiB")));
  }
  EXPECT_NE(device->allocate(3_MiB), nullptr);
}

TEST_F(FakeCudaDevice, TheCallersContextStaysCurrent) {
  fake_.set("devices", 2);
  const CudaDriver raw = driver();
  CudaContextHandle others = nullptr;
  ASSERT_EQ(raw.cuDevicePrimaryCtxRetain(&others, 1), CudaResult::kSuccess);
  ASSERT_EQ(raw.cuCtxPushCurrent_v2(others), CudaResult::kSuccess);
  const auto expect_others = [this](const char* after) {
    EXPECT_EQ(fake_.get("current_device"), 1) << after;
    EXPECT_EQ(fake_.get("context_depth"), 1) << after;
  };
  {
    const auto device = create({.checking = Checking::kOn, .longest_delay_us = 5});
    expect_others("creation");
    const auto memory = device->allocate(100);
    expect_others("allocate");
    const auto stream = device->create_stream();
    const auto event = device->create_event();
    expect_others("create");
    std::vector<std::byte> bytes(100);
    const auto registration = device->try_register_host(bytes);
    expect_others("try_register_host");
    stream->copy_to_device(memory->data(), bytes.data(), 100);
    stream->copy_to_host(bytes.data(), memory->data(), 100);
    stream->poison(memory->data(), 100);
    expect_others("copies");
    stream->record(*event);
    stream->wait(*event);
    stream->run([] {});
    expect_others("order");
    stream->synchronize();
    event->synchronize();
    EXPECT_TRUE(event->complete());
    device->stream_of(2).wait(*event);
    EXPECT_GT(device->free_bytes(), 0U);
    expect_others("questions");
    EXPECT_THROW(device->stream_of(12345), CudaError);
    EXPECT_THROW(device->allocate(1_GiB), BudgetError);
    expect_others("errors");
  }
  expect_others("destruction");
  CudaContextHandle popped = nullptr;
  EXPECT_EQ(raw.cuCtxPopCurrent_v2(&popped), CudaResult::kSuccess);
  EXPECT_EQ(raw.cuDevicePrimaryCtxRelease_v2(1), CudaResult::kSuccess);
  EXPECT_THAT(errors_, IsEmpty());
}

TEST_F(FakeCudaDevice, StaleBytesShowInCheckingModeAlone) {
  for (const Checking checking : {Checking::kOff, Checking::kOn}) {
    const auto device = create({.checking = checking});
    const auto memory = device->allocate(5000);
    const auto source = numbered_bytes(5000, 1);
    const auto stream = device->create_stream();
    stream->copy_to_device(memory->data(), source.data(), source.size());
    stream->set_access(memory->data(), source.size(), Access::kNone);
    stream->poison(memory->data(), source.size());
    stream->poison(memory->data(), 0);
    stream->synchronize();
    if (checking == Checking::kOff) {
      EXPECT_EQ(read(*device, *memory), source);
    } else {
      EXPECT_THAT(read(*device, *memory), Each(std::byte{0xFF}));
    }
  }
}

TEST_F(FakeCudaDevice, OwnStreamsAreLateToWriteAndTheCallersToReadInCheckingModeAlone) {
  for (const Checking checking : {Checking::kOff, Checking::kOn}) {
    fake_.reset();
    const auto device = create({.checking = checking, .longest_delay_us = 20});
    const auto memory = device->allocate(8);
    const auto event = device->create_event();
    const auto stream = device->create_stream();
    const std::vector<std::byte> source(8);
    for (int i = 0; i < 20; ++i) {
      stream->copy_to_device(memory->data(), source.data(), source.size());
      stream->record(*event);
    }
    const long long own = fake_.calls("cuLaunchHostFunc");
    for (int i = 0; i < 20; ++i) device->caller_stream().wait(*event);
    device->caller_stream().synchronize();
    const long long callers = fake_.calls("cuLaunchHostFunc") - own;
    EXPECT_EQ(own > 0, checking == Checking::kOn);
    EXPECT_EQ(callers > 0, checking == Checking::kOn);
  }
}

TEST_F(FakeCudaDevice, RegistrationsThatAreRefusedAreNullAndNoted) {
  fake_.set("most_registered_bytes", 10'000);
  const auto device = create();
  std::vector<std::byte> large(10'001);
  std::vector<std::byte> fits(10'000);
  for (const CudaResult refusal :
       {CudaResult::kOutOfMemory, CudaResult::kInvalidValue, CudaResult::kOperatingSystem,
        CudaResult::kNotPermitted, CudaResult::kNotSupported}) {
    fake_.set("registration_refusal", static_cast<int>(refusal));
    notes_.clear();
    EXPECT_EQ(device->try_register_host(large), nullptr);
    EXPECT_THAT(notes_, ElementsAre(HasSubstr("9.77 KiB of host memory are not pinned")));
  }
  const auto registration = device->try_register_host(fits);
  ASSERT_NE(registration, nullptr);
  EXPECT_EQ(registration->device_address(), fits.data());
  EXPECT_EQ(device->try_register_host(std::span(fits).subspan(5000)), nullptr);
  EXPECT_EQ(fake_.get("registrations"), 1);
  EXPECT_THAT(errors_, IsEmpty());
}

TEST_F(FakeCudaDevice, RegistersNothingWhereTheDeviceCannot) {
  fake_.set("host_register_supported", 0);
  const auto device = create();
  std::vector<std::byte> bytes(100);
  EXPECT_EQ(device->try_register_host(bytes), nullptr);
  EXPECT_EQ(fake_.calls("cuMemHostRegister_v2"), 0);
}

TEST_F(FakeCudaDevice, ARegistrationThatBreaksIsAnErrorAndLeavesNothing) {
  const auto device = create();
  std::vector<std::byte> bytes(100);
  fake_.fail("cuMemHostRegister_v2", 1, CudaResult::kInvalidContext);
  EXPECT_THROW(device->try_register_host(bytes), CudaError);
  fake_.fail("cuMemHostGetDevicePointer_v2", 1, CudaResult::kInvalidValue);
  EXPECT_THROW(device->try_register_host(bytes), CudaError);
  EXPECT_EQ(fake_.get("registrations"), 0);
}

TEST_F(FakeCudaDevice, ACallbackThatThrowsIsLoggedAndTheStreamGoesOn) {
  const auto device = create();
  const auto stream = device->create_stream();
  bool next = false;
  stream->run([] { throw std::runtime_error("disk on fire"); });
  stream->run([] { throw 1; });
  stream->run([&] { next = true; });
  stream->synchronize();
  EXPECT_TRUE(next);
  EXPECT_THAT(errors_, ElementsAre(AllOf(HasSubstr("device cuda:0"), HasSubstr("disk on fire")),
                                   HasSubstr("unknown")));
}

TEST_F(FakeCudaDevice, ACallbackIsFreedWhetherItRunsOrNot) {
  const auto device = create();
  const auto stream = device->create_stream();
  const auto token = std::make_shared<int>(1);  // shared with the callbacks, to see them go
  fake_.fail("cuLaunchHostFunc", 1, CudaResult::kOutOfMemory);
  EXPECT_THROW(stream->run([token] {}), CudaError);
  EXPECT_EQ(token.use_count(), 1);
  stream->run([token] {});
  stream->synchronize();
  EXPECT_EQ(token.use_count(), 1);
}

class OtherEvent final : public Event {
 public:
  bool complete() const override { return true; }
  void synchronize() const override {}
};

TEST_F(FakeCudaDevice, AnEventOfAnotherDeviceIsRefused) {
  fake_.set("devices", 2);
  const auto device = create();
  const auto other_device = create({.index = 1});
  const auto stream = device->create_stream();
  const auto others = other_device->create_event();
  OtherEvent host_event;
  for (Event* event : {others.get(), static_cast<Event*>(&host_event)}) {
    EXPECT_THROW(stream->record(*event), ConfigError);
    EXPECT_THROW(stream->wait(*event), ConfigError);
  }
}

/// A stream that other code of the process made, as torch makes its own.
class OthersStream {
 public:
  explicit OthersStream(const CudaDriver& driver) : driver_(driver) {
    CudaContextHandle context = nullptr;
    EXPECT_EQ(driver_.cuDevicePrimaryCtxRetain(&context, 0), CudaResult::kSuccess);
    EXPECT_EQ(driver_.cuCtxPushCurrent_v2(context), CudaResult::kSuccess);
    EXPECT_EQ(driver_.cuStreamCreateWithPriority(&handle_, kCudaStreamNonBlocking, 0),
              CudaResult::kSuccess);
  }
  ~OthersStream() {
    CudaContextHandle context = nullptr;
    EXPECT_EQ(driver_.cuStreamDestroy_v2(handle_), CudaResult::kSuccess);
    EXPECT_EQ(driver_.cuCtxPopCurrent_v2(&context), CudaResult::kSuccess);
    EXPECT_EQ(driver_.cuDevicePrimaryCtxRelease_v2(0), CudaResult::kSuccess);
  }
  OthersStream(const OthersStream&) = delete;
  OthersStream& operator=(const OthersStream&) = delete;

  std::uintptr_t handle() const { return std::bit_cast<std::uintptr_t>(handle_); }

 private:
  const CudaDriver driver_;
  CudaStreamHandle handle_ = nullptr;
};

TEST_F(FakeCudaDevice, AStreamOfTheCallerIsOneObject) {
  const auto device = create();
  const OthersStream first(driver());
  const OthersStream second(driver());
  Stream* const wrapped = &device->stream_of(first.handle());
  EXPECT_EQ(&device->stream_of(first.handle()), wrapped);
  EXPECT_NE(&device->stream_of(second.handle()), wrapped);
  EXPECT_NE(wrapped, &device->caller_stream());
  const auto event = device->create_event();
  wrapped->record(*event);
  wrapped->synchronize();
  EXPECT_TRUE(event->complete());
}

TEST_F(FakeCudaDevice, ThreadsFindTheSameStream) {
  const auto device = create();
  const OthersStream others(driver());
  std::vector<Stream*> found(4);
  {
    std::vector<std::jthread> threads;
    for (Stream*& mine : found) {
      threads.emplace_back([&] { mine = &device->stream_of(others.handle()); });
    }
  }
  EXPECT_THAT(found, Each(&device->stream_of(others.handle())));
}

TEST_F(FakeCudaDevice, EachThreadHasAPerThreadStreamOfItsOwn) {
  const auto device = create();
  Stream* const mine = &device->stream_of(kCudaPerThreadStream);
  Stream* others = nullptr;
  std::thread([&] { others = &device->stream_of(kCudaPerThreadStream); }).join();
  EXPECT_NE(mine, others);
  EXPECT_EQ(&device->stream_of(kCudaPerThreadStream), mine);
}

}  // namespace
}  // namespace tensorstream

#include "device/cuda_stream.h"

#include <bit>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "device/callback.h"
#include "device/cuda_event.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr unsigned char kStale = 0xFF;
constexpr int kDefaultPriority = 0;

CudaAddress address_of(const std::byte* data) { return std::bit_cast<CudaAddress>(data); }

/// A callback on its way through the driver, which owns it from the launch until it ran. It may
/// outlast the device, so it refers to nothing of it.
struct HostCall {
  std::string device_name;
  std::function<void()> callback;

  static void perform(void* data) {
    const std::unique_ptr<HostCall> call(static_cast<HostCall*>(data));
    run_callback(call->device_name.c_str(), call->callback);
  }
};

/// The pointer is the number of microseconds.
void sleep_microseconds(void* microseconds) {
  const auto count = std::bit_cast<std::uintptr_t>(microseconds);
  std::this_thread::sleep_for(std::chrono::microseconds(count));
}

}  // namespace

CudaStream::CudaStream(const CudaContext& context, const CudaStreamChecks& checks)
    : context_(context), checks_(checks), owner_(Owner::kThis), random_(checks.seed) {
  const CudaContext::Current current(context_);
  context_.check(context_.driver().cuStreamCreateWithPriority(&handle_, kCudaStreamNonBlocking,
                                                              kDefaultPriority),
                 "cuStreamCreateWithPriority");
}

CudaStream::CudaStream(const CudaContext& context, const CudaStreamChecks& checks,
                       CudaStreamHandle handle)
    : context_(context),
      checks_(checks),
      owner_(Owner::kCaller),
      handle_(handle),
      random_(checks.seed) {}

CudaStream::~CudaStream() {
  if (owner_ == Owner::kCaller) return;
  // Destroying it returns at once, while its work goes on in memory that the caller then frees.
  // guard: drained-stream
  context_.release_in("cuStreamSynchronize",
                      [this] { return context_.driver().cuStreamSynchronize(handle_); });
  // end guard
  context_.release_in("cuStreamDestroy_v2",
                      [this] { return context_.driver().cuStreamDestroy_v2(handle_); });
}

void CudaStream::copy_to_device(std::byte* target, const std::byte* source,
                                std::uint64_t size_bytes) {
  if (size_bytes == 0) return;
  const CudaContext::Current current(context_);
  if (owner_ == Owner::kThis) delay();
  context_.check(
      context_.driver().cuMemcpyHtoDAsync_v2(address_of(target), source, size_bytes, handle_),
      "cuMemcpyHtoDAsync_v2", size_bytes);
}

void CudaStream::copy_to_host(std::byte* target, const std::byte* source,
                              std::uint64_t size_bytes) {
  if (size_bytes == 0) return;
  const CudaContext::Current current(context_);
  context_.check(
      context_.driver().cuMemcpyDtoHAsync_v2(target, address_of(source), size_bytes, handle_),
      "cuMemcpyDtoHAsync_v2", size_bytes);
}

void CudaStream::wait(const Event& event) {
  const CudaEvent& cuda_event = CudaEvent::of(event, context_);
  const CudaContext::Current current(context_);
  // guard: event-wait
  context_.check(context_.driver().cuStreamWaitEvent(handle_, cuda_event.handle(), 0),
                 "cuStreamWaitEvent");
  // end guard
  // A reader that is late shows who does not wait for it.
  if (owner_ == Owner::kCaller) delay();
}

void CudaStream::record(Event& event) {
  const CudaEvent& cuda_event = CudaEvent::of(event, context_);
  const CudaContext::Current current(context_);
  if (owner_ == Owner::kThis) delay();
  context_.check(context_.driver().cuEventRecord(cuda_event.handle(), handle_), "cuEventRecord");
}

void CudaStream::run(std::function<void()> callback) {
  auto call = std::make_unique<HostCall>(context_.name(), std::move(callback));
  const CudaContext::Current current(context_);
  context_.check(context_.driver().cuLaunchHostFunc(handle_, &HostCall::perform, call.get()),
                 "cuLaunchHostFunc");
  static_cast<void>(call.release());  // the driver's, and perhaps gone already
}

void CudaStream::synchronize() {
  const CudaContext::BesideCaptures current(context_);
  context_.check(context_.driver().cuStreamSynchronize(handle_), "cuStreamSynchronize");
}

bool CudaStream::is_capturing() const {
  const CudaContext::Current current(context_);
  int status = kCudaCaptureNone;
  const CudaResult result = context_.driver().cuStreamIsCapturing(handle_, &status);
  // The legacy stream, which another one that is captured waits for.
  if (result == CudaResult::kStreamCaptureImplicit) return true;
  context_.check(result, "cuStreamIsCapturing");
  return status != kCudaCaptureNone;
}

void CudaStream::poison(std::byte* data, std::uint64_t size_bytes) {
  if (checks_.checking == Checking::kOff || size_bytes == 0) return;
  const CudaContext::Current current(context_);
  context_.check(context_.driver().cuMemsetD8Async(address_of(data), kStale, size_bytes, handle_),
                 "cuMemsetD8Async", size_bytes);
}

void CudaStream::launch(CudaFunctionHandle function, const CudaGrid& grid,
                        std::span<void*> arguments) {
  const CudaContext::Current current(context_);
  if (owner_ == Owner::kThis) delay();
  context_.check(
      context_.driver().cuLaunchKernel(function, grid.blocks_x, grid.blocks_y, 1, grid.threads, 1,
                                       1, 0, handle_, arguments.data(), nullptr),
      "cuLaunchKernel");
}

CudaStream& CudaStream::of(Stream& stream, const CudaContext& context) {
  auto* const cuda_stream = dynamic_cast<CudaStream*>(&stream);
  if (cuda_stream == nullptr || &cuda_stream->context_ != &context) {
    throw ConfigError(context.description() + ": the stream was made by another device");
  }
  return *cuda_stream;
}

void CudaStream::delay() {
  const std::uint32_t microseconds = next_delay_us();
  if (microseconds == 0) return;
  context_.check(context_.driver().cuLaunchHostFunc(
                     handle_, &sleep_microseconds,
                     std::bit_cast<void*>(static_cast<std::uintptr_t>(microseconds))),
                 "cuLaunchHostFunc");
}

std::uint32_t CudaStream::next_delay_us() {
  if (checks_.checking == Checking::kOff || checks_.longest_delay_us == 0) return 0;
  const MutexLock lock(mutex_);
  return std::uniform_int_distribution<std::uint32_t>(0, checks_.longest_delay_us)(random_);
}

}  // namespace tensorstream

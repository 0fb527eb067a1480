#include "device/host_stream.h"

#include <chrono>
#include <cstring>
#include <utility>

#include "device/callback.h"
#include "device/host_event.h"

namespace tensorstream {
namespace {

constexpr const char* kName = "cpu";

}  // namespace

void HostStream::copy_to_device(std::byte* target, const std::byte* source,
                                std::uint64_t size_bytes) {
  if (size_bytes == 0) return;
  submit([=] { std::memcpy(target, source, size_bytes); });
}

void HostStream::copy_to_host(std::byte* target, const std::byte* source,
                              std::uint64_t size_bytes) {
  copy_to_device(target, source, size_bytes);  // one memory
}

void HostStream::wait(const Event& event) {
  // What the event records after this call is not waited for.
  auto last = HostEvent::of(event).last_record();
  if (last == nullptr) return;
  submit([last = std::move(last)] { last->wait(); });
}

void HostStream::record(Event& event) {
  HostEvent& host_event = HostEvent::of(event);
  auto record = std::make_shared<Completion>();
  submit([record] { record->set(); });
  host_event.set_last_record(std::move(record));
}

void HostStream::run(std::function<void()> callback) { submit(std::move(callback)); }

void HostStream::set_access(std::byte* data, std::uint64_t size_bytes, Access access) {
  if (checking_ == Checking::kOff) return;
  submit([range = memory_.find(data, size_bytes), access] {
    range.allocation->set_access(range.offset_bytes, range.size_bytes, access);
  });
}

void HostStream::poison(std::byte* data, std::uint64_t size_bytes) {
  if (checking_ == Checking::kOff) return;
  submit([range = memory_.find(data, size_bytes)] {
    range.allocation->poison(range.offset_bytes, range.size_bytes);
  });
}

QueueStream::QueueStream(HostMemory& memory, const HostDeviceOptions& options, std::uint64_t seed)
    : HostStream(memory, options.checking),
      longest_delay_us_(options.checking == Checking::kOn ? options.longest_delay_us : 0),
      random_(seed),
      worker_([this](const std::stop_token& stop) { work_until(stop); }) {}

QueueStream::~QueueStream() {
  worker_.request_stop();
  {
    const MutexLock lock(mutex_);  // the worker is in its wait, or will see the request
    changed_.notify_all();
  }
}

void QueueStream::synchronize() {
  const auto done = std::make_shared<Completion>();
  submit([done] { done->set(); });
  done->wait();
}

void QueueStream::submit(Work work) {
  const MutexLock lock(mutex_);
  queue_.push_back(std::move(work));
  changed_.notify_one();
}

void QueueStream::work_until(const std::stop_token& stop) {
  for (;;) {
    Work work;
    {
      MutexLock lock(mutex_);
      while (queue_.empty() && !stop.stop_requested()) changed_.wait(lock);
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    delay();
    run_callback(kName, work);
  }
}

void QueueStream::delay() {
  if (longest_delay_us_ == 0) return;
  std::uniform_int_distribution<std::uint32_t> microseconds(0, longest_delay_us_);
  std::this_thread::sleep_for(std::chrono::microseconds(microseconds(random_)));
}

void CallerStream::submit(Work work) { run_callback(kName, work); }

}  // namespace tensorstream

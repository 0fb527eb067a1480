#include "device/host_event.h"

#include <utility>

#include "tensorstream/error.h"

namespace tensorstream {

void Completion::set() {
  const MutexLock lock(mutex_);
  happened_ = true;
  changed_.notify_all();
}

bool Completion::happened() const {
  const MutexLock lock(mutex_);
  return happened_;
}

void Completion::wait() const {
  MutexLock lock(mutex_);
  while (!happened_) changed_.wait(lock);
}

bool HostEvent::complete() const {
  const auto last = last_record();
  return last == nullptr || last->happened();
}

void HostEvent::synchronize() const {
  if (const auto last = last_record()) last->wait();
}

void HostEvent::set_last_record(std::shared_ptr<Completion> record) {
  const MutexLock lock(mutex_);
  last_ = std::move(record);
}

std::shared_ptr<Completion> HostEvent::last_record() const {
  const MutexLock lock(mutex_);
  return last_;
}

const HostEvent& HostEvent::of(const Event& event) {
  const auto* const host_event = dynamic_cast<const HostEvent*>(&event);
  if (host_event == nullptr) throw ConfigError("device cpu: the event was made by another device");
  return *host_event;
}

HostEvent& HostEvent::of(Event& event) {
  auto* const host_event = dynamic_cast<HostEvent*>(&event);
  if (host_event == nullptr) throw ConfigError("device cpu: the event was made by another device");
  return *host_event;
}

}  // namespace tensorstream

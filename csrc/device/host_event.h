// HostDevice's events.
#pragma once

#include <memory>

#include "base/mutex.h"
#include "device/device.h"

namespace tensorstream {

/// Happens once. Thread-safe.
class Completion {
 public:
  void set();
  bool happened() const;
  /// Blocks until set() was called.
  void wait() const;

 private:
  // Guarded by mutex_.
  mutable Mutex mutex_;
  mutable ConditionVariable changed_;
  bool happened_ TS_GUARDED_BY(mutex_) = false;
};

/// An event holds the completion of its last record only; queued work holds the completions it is
/// about. Either may go first. Thread-safe.
class HostEvent final : public Event {
 public:
  bool complete() const override;
  void synchronize() const override;

  /// Makes `record` the event's last, once a stream has the work that sets it: a wait never sees a
  /// record that is not queued yet.
  void set_last_record(std::shared_ptr<Completion> record);
  /// What the event last recorded; null where it never did.
  std::shared_ptr<Completion> last_record() const;

  /// `event` as one of this device's. Raises ConfigError where it is another's.
  static HostEvent& of(Event& event);
  static const HostEvent& of(const Event& event);

 private:
  // Guarded by mutex_.
  mutable Mutex mutex_;
  std::shared_ptr<Completion> last_ TS_GUARDED_BY(mutex_);  // shared with queued records and waits
};

}  // namespace tensorstream

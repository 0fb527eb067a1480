#include "base/log.h"

#include <utility>

#include "base/mutex.h"

namespace tensorstream {
namespace {

struct SinkHolder {
  Mutex mutex;
  LogSink sink TS_GUARDED_BY(mutex);
};

// The library's one mutable static: a process has one place for messages, as it has one stderr.
SinkHolder& holder() {
  static SinkHolder instance;
  return instance;
}

}  // namespace

void set_log_sink(LogSink sink) {
  SinkHolder& current = holder();
  const MutexLock lock(current.mutex);
  current.sink = std::move(sink);
}

void log(LogLevel level, std::string_view message) noexcept {
  try {
    LogSink sink;
    SinkHolder& current = holder();
    {
      const MutexLock lock(current.mutex);
      sink = current.sink;
    }
    if (sink) sink(level, message);
  } catch (...) {  // a message that cannot be delivered must not end the work it is about
    return;
  }
}

}  // namespace tensorstream

#include "device/callback.h"

#include <array>
#include <cstdio>
#include <exception>

#include "base/log.h"

namespace tensorstream {
namespace {

void log_skipped(const char* device_name, const char* what) noexcept {
  std::array<char, 512> message{};  // no allocation: this must not throw
  std::snprintf(message.data(), message.size(),
                "device %s: work of a stream failed and is skipped: %s", device_name, what);
  log(LogLevel::kError, message.data());
}

}  // namespace

void run_callback(const char* device_name, const std::function<void()>& callback) noexcept {
  try {
    callback();
  } catch (const std::exception& error) {
    log_skipped(device_name, error.what());
  } catch (...) {
    log_skipped(device_name, "it threw something unknown");
  }
}

}  // namespace tensorstream

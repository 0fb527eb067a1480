// One log callback for the library; it never prints by itself.
#pragma once

#include <functional>
#include <string_view>

namespace tensorstream {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

using LogSink = std::function<void(LogLevel, std::string_view)>;

/// Sends the library's messages to `sink` from now on; an empty sink drops them. Thread-safe.
void set_log_sink(LogSink sink);

/// Hands one message to the sink. Thread-safe; never throws, so destructors and callbacks may call
/// it.
void log(LogLevel level, std::string_view message) noexcept;

}  // namespace tensorstream

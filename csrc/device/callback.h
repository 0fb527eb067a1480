// Callbacks that streams run.
#pragma once

#include <functional>

namespace tensorstream {

/// Calls `callback`; what it throws is logged under the device's name, as its stream has nobody to
/// hand it to.
void run_callback(const char* device_name, const std::function<void()>& callback) noexcept;

}  // namespace tensorstream

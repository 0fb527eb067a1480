// Threads, as many as the system gives.
#pragma once

#include <cstddef>
#include <functional>
#include <thread>
#include <vector>

namespace tensorstream {

/// Starts `wanted` threads that each call `work` once, beside the caller, who is to do the same and
/// joins them by letting go of them. Fewer where the system has no more, or no memory: the others
/// do what is to be done, and the log says that `what` ("weights are encoded") is done by fewer.
std::vector<std::jthread> start_threads(std::size_t wanted, const char* what,
                                        const std::function<void()>& work) noexcept;

}  // namespace tensorstream

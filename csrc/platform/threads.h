// Threads, as many as the system gives.
#pragma once

#include <cstddef>
#include <functional>
#include <thread>
#include <vector>

namespace tensorstream {

/// Starts what is missing of `threads` that each call `work` once: one of them is the caller, who
/// is to do the same, and joins the others by letting go of them. Fewer where the system has no
/// more, or no memory: the others do what is to be done, and the log says that `what` ("weights are
/// encoded") is done by fewer.
std::vector<std::jthread> start_helpers(std::size_t threads, const char* what,
                                        const std::function<void()>& work) noexcept;

}  // namespace tensorstream

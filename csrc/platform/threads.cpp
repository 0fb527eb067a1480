#include "platform/threads.h"

#include <exception>
#include <string>

#include "base/log.h"

namespace tensorstream {

std::vector<std::jthread> start_threads(std::size_t wanted, const char* what,
                                        const std::function<void()>& work) noexcept {
  std::vector<std::jthread> threads;
  try {
    threads.reserve(wanted);
    while (threads.size() < wanted) threads.emplace_back(work);
  } catch (const std::exception& error) {
    log(LogLevel::kDebug, std::string(what) + " by " + std::to_string(threads.size() + 1) + " of " +
                              std::to_string(wanted + 1) + " threads: " + error.what());
  }
  return threads;
}

}  // namespace tensorstream

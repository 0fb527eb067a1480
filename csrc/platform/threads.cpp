#include "platform/threads.h"

#include <exception>
#include <string>

#include "base/log.h"

namespace tensorstream {

std::vector<std::jthread> start_helpers(std::size_t threads, const char* what,
                                        const std::function<void()>& work) noexcept {
  std::vector<std::jthread> helpers;
  try {
    helpers.reserve(threads);
    while (helpers.size() + 1 < threads) helpers.emplace_back(work);
  } catch (const std::exception& error) {
    log(LogLevel::kDebug, std::string(what) + " by " + std::to_string(helpers.size() + 1) + " of " +
                              std::to_string(threads) + " threads: " + error.what());
  }
  return helpers;
}

}  // namespace tensorstream

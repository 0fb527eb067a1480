#include "platform/processors.h"

#include <sched.h>

#include <algorithm>
#include <thread>

namespace tensorstream {

unsigned usable_processors() noexcept {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    return std::max(1U, static_cast<unsigned>(CPU_COUNT(&allowed)));
  }
  // A machine with more processors than cpu_set_t has bits.
  return std::max(1U, std::thread::hardware_concurrency());
}

}  // namespace tensorstream

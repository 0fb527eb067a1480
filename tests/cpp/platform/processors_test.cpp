#include "platform/processors.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <thread>

namespace tensorstream {
namespace {

TEST(UsableProcessors, AreThoseThatTheThreadMayRunOn) {
  EXPECT_GE(usable_processors(), 1U);
  std::thread([] {
    cpu_set_t all;
    ASSERT_EQ(::sched_getaffinity(0, sizeof(all), &all), 0);
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
      if (!CPU_ISSET(processor, &all)) continue;
      CPU_SET(processor, &one);
      break;
    }
    ASSERT_EQ(::sched_setaffinity(0, sizeof(one), &one), 0);
    EXPECT_EQ(usable_processors(), 1U);
  }).join();
}

}  // namespace
}  // namespace tensorstream

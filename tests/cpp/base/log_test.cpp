#include "base/log.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace tensorstream {
namespace {

class Log : public ::testing::Test {
 protected:
  ~Log() override { set_log_sink({}); }
};

TEST_F(Log, HandsLevelAndTextToTheSink) {
  std::vector<std::pair<LogLevel, std::string>> seen;
  set_log_sink([&](LogLevel level, std::string_view text) { seen.emplace_back(level, text); });
  log(LogLevel::kWarning, "low on memory");
  ASSERT_EQ(seen.size(), 1U);
  EXPECT_EQ(seen[0], std::pair(LogLevel::kWarning, std::string("low on memory")));
}

TEST_F(Log, AnEmptySinkDropsMessages) {
  int seen = 0;
  set_log_sink([&](LogLevel, std::string_view) { ++seen; });
  set_log_sink({});
  log(LogLevel::kError, "nobody listens");
  EXPECT_EQ(seen, 0);
}

TEST_F(Log, ASinkThatThrowsDoesNotReachTheCaller) {
  set_log_sink([](LogLevel, std::string_view) { throw std::runtime_error("full"); });
  EXPECT_NO_THROW(log(LogLevel::kError, "message"));
}

TEST_F(Log, ASinkMayLogAndReplaceItself) {
  int seen = 0;
  set_log_sink([&](LogLevel, std::string_view) {
    ++seen;
    set_log_sink({});
    log(LogLevel::kDebug, "from the sink");
  });
  log(LogLevel::kInfo, "first");
  EXPECT_EQ(seen, 1);
}

TEST_F(Log, ThreadsMayLogWhileTheSinkChanges) {
  std::atomic<int> seen = 0;
  const LogSink count = [&](LogLevel, std::string_view) { ++seen; };
  set_log_sink(count);
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([] {
        for (int k = 0; k < 200; ++k) log(LogLevel::kInfo, "x");
      });
    }
    for (int k = 0; k < 100; ++k) set_log_sink(count);
  }
  EXPECT_EQ(seen, 800);
}

}  // namespace
}  // namespace tensorstream

// A pack that is killed, at any moment, leaves no target or a whole one, and the next goes on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "packed_files.h"
#include "platform/file.h"
#include "store/pack.h"

namespace tensorstream::testing {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr const char* kStaged = ".p.tensorstream-partial";
constexpr int kShards = 5;
constexpr std::uint64_t kShardBytes = 2 * 1'300'000 + 320;
// A config and a vocabulary, which are carried along first.
constexpr std::uint64_t kCarriedBytes = 2 + 2'500'000;
// When so many are done the first two shards are whole, and the third is not.
constexpr std::uint64_t kTwoShards = kCarriedBytes + 2 * kShardBytes + 1;

std::string shard(int number, unsigned seed) {
  const std::string name = "w" + std::to_string(number);
  return file_of({{name, "BF16", "[1300,1000]", weights(1'300'000, seed)},
                  {name + ".ids", "I64", "[40]", noise(320)}});
}

/// Five shards with an index, a config, and a file in a folder; and what they are packed.
class ResumedPack : public ::testing::Test {
 protected:
  ResumedPack() {
    std::string map;
    for (int number = 0; number < kShards; ++number) {
      const std::string name = "w" + std::to_string(number);
      folder_.write("src/" + name + ".safetensors",
                    shard(number, static_cast<unsigned>(number) + 1));
      for (const std::string& tensor : {name, name + ".ids"}) {
        map += (map.empty() ? "\"" : ",\"") + tensor + "\":\"" + name + ".safetensors\"";
      }
    }
    folder_.write("src/model.safetensors.index.json", "{\"weight_map\":{" + map + "}}");
    folder_.write("src/config.json", "{}");
    folder_.write("src/tokenizer/vocab.txt", noise(2'500'000, 4));
    pack_to("whole");
    whole_ = files_below(folder_.path("whole"));
  }

  void pack_to(const std::string& target, std::uint32_t level = CompressionLevel::kBalanced,
               const ProgressSink& sink = {}) const {
    pack_checkpoint(folder_.path("src"), folder_.path(target), {CompressionLevel(level), 2}, sink);
  }
  /// Packs in a process of its own.
  pid_t start(const ProgressSink& sink) const {
    const pid_t child = ::fork();
    if (child != 0) return child;
    try {
      pack_to("p", CompressionLevel::kBalanced, sink);
    } catch (...) {
      std::_Exit(3);
    }
    std::_Exit(0);
  }
  static void wait_for(pid_t child) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status) || WEXITSTATUS(status) == 0) << "it failed by itself";
  }
  /// Packs until so many bytes are done, and is killed.
  void pack_until(std::uint64_t bytes) const {
    wait_for(start([&](std::uint64_t done, std::uint64_t /*all*/) {
      if (done >= bytes) static_cast<void>(::raise(SIGKILL));
    }));
    ASSERT_TRUE(fs::exists(folder_.path(kStaged))) << "it was not killed";
    ASSERT_FALSE(fs::exists(folder_.path("p")));
  }
  /// Packs what is left, and holds it against a pack that nobody disturbed.
  void expect_whole() const {
    pack_to("p");
    EXPECT_TRUE(files_below(folder_.path("p")) == whole_);
    EXPECT_EQ(folders_below("p"), folders_below("whole"));
    EXPECT_FALSE(fs::exists(folder_.path(kStaged)));
  }
  std::vector<std::string> folders_below(const std::string& name) const {
    std::vector<std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator(folder_.path(name))) {
      if (!entry.is_directory()) continue;
      found.push_back(entry.path().lexically_relative(folder_.path(name)).string());
    }
    return found;
  }
  static std::string packed(const std::string& folder, int number) {
    return folder + "/packed-w" + std::to_string(number) + ".safetensors";
  }
  std::string bytes(const std::string& name) const { return read_file(folder_.path(name)); }
  FileIdentity identity(const std::string& name) const {
    return File::open_for_reading(folder_.path(name)).identity();
  }

  const TemporaryFolder folder_;
  std::map<std::string, std::string> whole_;
};

TEST_F(ResumedPack, ShardsThatAreWholeAreKeptAsTheyAre) {
  pack_until(kTwoShards);
  const FileIdentity first = identity(packed(kStaged, 0));
  const FileIdentity second = identity(packed(kStaged, 1));
  expect_whole();
  EXPECT_EQ(identity(packed("p", 0)), first) << "it was packed again";
  EXPECT_EQ(identity(packed("p", 1)), second) << "it was packed again";
}

TEST_F(ResumedPack, WhatIsNotWholeIsPackedAgain) {
  pack_until(kTwoShards);
  const std::string good = bytes(packed(kStaged, 0));
  std::mt19937_64 random(8);
  for (int i = 0; i < 30; ++i) {
    std::string bad = good;
    if (i % 3 == 0) {
      bad.resize(random() % bad.size());
    } else if (i % 3 == 1) {
      bad += std::string(1 + random() % 5000, '\0');
    } else {
      const std::uint64_t bit = random() % (8 * bad.size());
      bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    }
    folder_.write(packed(kStaged, 0), bad);
    pack_until(kTwoShards);
    ASSERT_TRUE(bytes(packed(kStaged, 0)) == good) << i;
  }
  expect_whole();
}

TEST_F(ResumedPack, AShardOfAnotherNameIsNotTakenForIt) {
  pack_until(kTwoShards);
  folder_.write(packed(kStaged, 0), bytes(packed(kStaged, 1)));
  expect_whole();
}

TEST_F(ResumedPack, WhatIsNotOfTheWorkGoes) {
  pack_until(kTwoShards);
  const std::string staged = kStaged;
  folder_.write(staged + "/packed-other.safetensors", bytes(packed(kStaged, 0)));
  folder_.write(staged + "/deep/er/left.txt", "x");
  fs::create_directories(folder_.path(staged + "/empty/one"));
  fs::remove(folder_.path(packed(kStaged, 1)));
  fs::create_symlink(folder_.path("src/config.json"), folder_.path(packed(kStaged, 1)));
  expect_whole();
  EXPECT_EQ(bytes("src/config.json"), "{}");
}

TEST_F(ResumedPack, AnotherLevelBeginsAnew) {
  pack_until(kTwoShards);
  pack_to("p", CompressionLevel::kSmallest);
  pack_to("seven", CompressionLevel::kSmallest);
  EXPECT_TRUE(files_below(folder_.path("p")) == files_below(folder_.path("seven")));
  EXPECT_FALSE(files_below(folder_.path("p")) == whole_);
}

TEST_F(ResumedPack, AnotherSourceBeginsAnew) {
  pack_until(kTwoShards);
  folder_.write("src/w0.safetensors", shard(0, 77));  // other weights, the same size
  pack_to("p");
  pack_to("changed");
  EXPECT_TRUE(files_below(folder_.path("p")) == files_below(folder_.path("changed")));
  EXPECT_FALSE(files_below(folder_.path("p")) == whole_);
}

TEST_F(ResumedPack, KilledAtFiftyRandomMomentsItIsAsIfItNeverWas) {
  const Clock::time_point begin = Clock::now();
  pack_to("once");
  const auto once = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin);
  std::mt19937_64 random(5);
  int finished = 0;
  for (int i = 0; i < 50; ++i) {
    const pid_t child = start({});
    const auto moment = random() % static_cast<std::uint64_t>(once.count() + 2000);
    std::this_thread::sleep_for(std::chrono::microseconds(moment));
    ::kill(child, SIGKILL);
    wait_for(child);
    if (!fs::exists(folder_.path("p"))) continue;
    ++finished;
    ASSERT_TRUE(files_below(folder_.path("p")) == whole_) << "round " << i;
    fs::remove_all(folder_.path("p"));
  }
  EXPECT_LT(finished, 50);
  expect_whole();
}

}  // namespace
}  // namespace tensorstream::testing

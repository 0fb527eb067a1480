#include "platform/cgroup.h"

#include <gtest/gtest.h>

#include "platform/temporary_folder.h"

namespace tensorstream {
namespace {

/// A /proc and /sys of a test.
class Cgroup : public ::testing::Test {
 protected:
  void membership(std::string_view text) const { folder_.write_text("proc/self/cgroup", text); }

  void group_v2(const std::string& folder, std::string_view limit, std::string_view usage,
                std::string_view inactive_file) const {
    folder_.write_text("sys/fs/cgroup/" + folder + "/memory.max", std::string(limit) + "\n");
    folder_.write_text("sys/fs/cgroup/" + folder + "/memory.current", std::string(usage) + "\n");
    folder_.write_text("sys/fs/cgroup/" + folder + "/memory.stat",
                       "anon 1\nfile " + usage_of_files(folder) +
                           "\nfile_mapped 3\ninactive_file " + std::string(inactive_file) + "\n");
  }
  void group_v1(const std::string& folder, std::string_view limit, std::string_view usage,
                std::string_view inactive_file) const {
    const std::string group = "sys/fs/cgroup/memory/" + folder;
    folder_.write_text(group + "/memory.limit_in_bytes", std::string(limit) + "\n");
    folder_.write_text(group + "/memory.usage_in_bytes", std::string(usage) + "\n");
    folder_.write_text(group + "/memory.stat",
                       "cache 5\ninactive_file 7\ntotal_cache " + usage_of_files(folder) +
                           "\ntotal_inactive_file " + std::string(inactive_file) + "\n");
  }

  /// Another for each group.
  static std::string usage_of_files(const std::string& folder) {
    return std::to_string(100 + folder.size());
  }

  std::optional<CgroupMemory> memory() const { return cgroup_memory(folder_.path("")); }

 private:
  TemporaryFolder folder_;
};

TEST_F(Cgroup, NoGroupsAreNoLimit) {
  EXPECT_FALSE(memory());
  membership("0::/\n");
  EXPECT_FALSE(memory());
}

TEST_F(Cgroup, V2TakesTheTightestOfTheAncestors) {
  membership("0::/a/b/c\n");
  group_v2("a/b/c", "max", "100", "0");
  group_v2("a/b", "5000", "2000", "500");
  group_v2("a", "9000", "8500", "100");
  const auto seen = memory();
  ASSERT_TRUE(seen);
  EXPECT_EQ(seen->limit_bytes, 5000U);
  EXPECT_EQ(seen->left_bytes, 600U);  // the outer group's: 9000 - (8500 - 100)
  EXPECT_EQ(seen->file_bytes, 101U);  // likewise
}

TEST_F(Cgroup, V2WithoutAnyLimitIsNothing) {
  membership("0::/a\n");
  group_v2("a", "max", "100", "0");
  EXPECT_FALSE(memory());
}

TEST_F(Cgroup, V2OfAHybridSystemIsBelowUnified) {
  membership("4:cpu:/a\n0::/a\n");
  group_v2("unified/a", "5000", "2000", "0");
  ASSERT_TRUE(memory());
  EXPECT_EQ(memory()->left_bytes, 3000U);
}

TEST_F(Cgroup, V1TakesTheTightestAndKnowsItsNoLimit) {
  membership("9:name=systemd:/x\n4:cpu,memory:/a/b\n1:cpuacct:/y\n");
  group_v1("a/b", "9223372036854771712", "100", "0");
  group_v1("a", "7000", "6000", "2000");
  group_v1("x", "1", "1", "0");
  const auto seen = memory();
  ASSERT_TRUE(seen);
  EXPECT_EQ(seen->limit_bytes, 7000U);
  EXPECT_EQ(seen->left_bytes, 3000U);
  EXPECT_EQ(seen->file_bytes, 101U);
}

TEST_F(Cgroup, AContainerThatSeesItsGroupAsTheMountIsLimited) {
  membership("4:memory:/docker/0123\n");
  group_v1("", "4000", "1000", "0");
  ASSERT_TRUE(memory());
  EXPECT_EQ(memory()->limit_bytes, 4000U);
}

TEST_F(Cgroup, AGroupAboveTheNamespaceLooksAtTheMountAlone) {
  membership("0::/../other\n");
  group_v2("", "4000", "1000", "0");
  group_v2("other", "10", "1", "0");
  ASSERT_TRUE(memory());
  EXPECT_EQ(memory()->limit_bytes, 4000U);
}

TEST_F(Cgroup, MoreUsedThanAllowedLeavesNothing) {
  membership("0::/a\n");
  group_v2("a", "1000", "1500", "0");
  ASSERT_TRUE(memory());
  EXPECT_EQ(memory()->left_bytes, 0U);
}

TEST_F(Cgroup, NonsenseIsNoLimit) {
  membership("nonsense\n:\n0:\n4:memory\n0::relative\n");
  group_v2("", "many", "x", "y");
  EXPECT_FALSE(memory());
}

}  // namespace
}  // namespace tensorstream

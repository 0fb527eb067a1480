#include "platform/numa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <sstream>
#include <vector>

#include "base/log.h"
#include "base/units.h"
#include "platform/temporary_folder.h"
#include "platform/text_file.h"

namespace tensorstream {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

class NumaNode : public ::testing::Test {
 protected:
  void device(const std::string& bus_id, std::string_view node) const {
    folder_.write_text("sys/bus/pci/devices/" + bus_id + "/numa_node", node);
  }
  std::optional<int> node_of(std::string_view bus_id) const {
    return numa_node_of_pci_device(bus_id, folder_.path(""));
  }

 private:
  TemporaryFolder folder_;
};

TEST_F(NumaNode, IsTheOneThatTheSystemSays) {
  device("0000:0f:00.0", "1\n");
  device("0001:af:1c.7", "12\n");
  EXPECT_EQ(node_of("0000:0f:00.0"), 1);
  EXPECT_EQ(node_of("0000:0F:00.0"), 1);
  EXPECT_EQ(node_of("0001:AF:1C.7"), 12);
}

TEST_F(NumaNode, OfADeviceThatIsNearNoneIsNothing) {
  device("0000:0f:00.0", "-1\n");
  EXPECT_EQ(node_of("0000:0f:00.0"), std::nullopt);
}

TEST_F(NumaNode, ThatCannotBeReadIsNothing) {
  device("0000:01:00.0", "");
  device("0000:02:00.0", "near\n");
  device("0000:03:00.0", "99999999999\n");
  device("../devices/0000:04:00.0", "1\n");
  for (const char* const bus_id : {"0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:09:00.0",
                                   "", "..", "../devices/0000:04:00.0", "0000:04:00.0\n"}) {
    EXPECT_EQ(node_of(bus_id), std::nullopt) << bus_id;
  }
}

/// The policy of the mapping that begins at `data`, as the system says; nothing where it does not.
std::optional<std::string> policy_of(const std::byte* data) {
  const auto text = read_text_file("/proc/self/numa_maps");
  if (!text || text->empty()) return std::nullopt;
  std::ostringstream address;
  address << std::hex << reinterpret_cast<std::uintptr_t>(data) << ' ';
  std::istringstream lines(*text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(address.str())) return line.substr(address.str().size());
  }
  return std::nullopt;
}

TEST(PreferredNode, IsThePolicyOfTheMemory) {
  const Mapping mapping = Mapping::anonymous(4 * page_size_bytes());
  std::vector<std::string> refusals;
  set_log_sink([&](LogLevel, std::string_view text) { refusals.emplace_back(text); });
  prefer_numa_node(mapping, 0);
  set_log_sink({});
  std::memset(mapping.data(), 3, mapping.size_bytes());
  EXPECT_EQ(mapping.data()[mapping.size_bytes() - 1], std::byte{3});
  const auto policy = policy_of(mapping.data());
  if (!policy || !refusals.empty()) GTEST_SKIP() << "no NUMA here, or no right to it";
  EXPECT_THAT(*policy, HasSubstr("prefer"));
}

TEST(PreferredNode, ThatIsNotThereIsSaidAndNoError) {
  const Mapping mapping = Mapping::anonymous(page_size_bytes());
  std::vector<LogLevel> levels;
  set_log_sink([&](LogLevel level, std::string_view) { levels.push_back(level); });
  for (const int node : {-1, 1000, 1023, 1024, 1 << 30}) prefer_numa_node(mapping, node);
  prefer_numa_node(Mapping(), 0);
  set_log_sink({});
  EXPECT_THAT(levels, Each(LogLevel::kDebug));
  EXPECT_EQ(levels.size(), 5U);
  mapping.data()[0] = std::byte{1};
}

}  // namespace
}  // namespace tensorstream

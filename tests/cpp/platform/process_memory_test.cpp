#include "platform/process_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>

#include "base/units.h"
#include "platform/mapping.h"

namespace tensorstream {
namespace {

TEST(ResidentSize, GrowsWithTouchedMemoryAndRemembersThePeak) {
  const auto before = resident_size();
  ASSERT_TRUE(before);
  {
    const Mapping mapping = Mapping::anonymous(64_MiB);
    std::memset(mapping.data(), 1, mapping.size_bytes());
    const auto during = resident_size();
    ASSERT_TRUE(during);
    EXPECT_GE(during->now_bytes, before->now_bytes + 60_MiB);
    EXPECT_GE(during->peak_bytes + 1_MiB, during->now_bytes);
  }
  const auto after = resident_size();
  ASSERT_TRUE(after);
  EXPECT_LE(after->now_bytes, before->now_bytes + 32_MiB);
  EXPECT_GE(after->peak_bytes, before->now_bytes + 60_MiB);
}

TEST(Ram, UsableIsAtMostTheMachinesAndAtLeastWhatIsAvailable) {
  const auto machine = static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * page_size_bytes();
  EXPECT_LE(usable_ram_bytes(), machine);
  EXPECT_GT(available_ram_bytes(), 1_MiB);
  EXPECT_LE(available_ram_bytes(), usable_ram_bytes());
}

}  // namespace
}  // namespace tensorstream

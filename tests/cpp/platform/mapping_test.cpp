#include "platform/mapping.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/units.h"
#include "made_bytes/weights.h"
#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

bool is_mapped(const std::byte* address) {
  const std::uintptr_t page = reinterpret_cast<std::uintptr_t>(address) & ~(page_size_bytes() - 1);
  unsigned char present = 0;
  return ::mincore(reinterpret_cast<void*>(page), page_size_bytes(), &present) == 0;
}

TEST(Mapping, AnonymousMemoryIsZeroedWritableAndWholePages) {
  const Mapping mapping = Mapping::anonymous(page_size_bytes() + 1);
  EXPECT_EQ(mapping.size_bytes(), 2 * page_size_bytes());
  EXPECT_TRUE(std::all_of(mapping.data(), mapping.data() + mapping.size_bytes(),
                          [](std::byte b) { return b == std::byte{0}; }));
  std::memset(mapping.data(), 0x5A, mapping.size_bytes());
  EXPECT_EQ(mapping.data()[mapping.size_bytes() - 1], std::byte{0x5A});
}

TEST(Mapping, HugePagesMayBeAskedForOrNot) {
  for (const HugePages huge_pages : {HugePages::kNever, HugePages::kWhereGiven}) {
    const Mapping mapping = Mapping::anonymous(5_MiB, huge_pages);
    mapping.data()[5_MiB - 1] = std::byte{1};
    EXPECT_EQ(mapping.size_bytes(), 5_MiB);
  }
}

TEST(Mapping, ALargeOneBeginsWithAHugePage) {
  std::vector<Mapping> others;
  for (const std::uint64_t size : {2_MiB, 2_MiB + 1, 5_MiB + 12'345, 10_MiB - 1, 64_MiB}) {
    others.push_back(Mapping::anonymous(page_size_bytes()));  // the next one does not begin by luck
    const Mapping mapping = Mapping::anonymous(size);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(mapping.data()) % kHugePageBytes, 0U) << size;
    EXPECT_EQ(mapping.size_bytes(), align_up(size, page_size_bytes()));
    mapping.data()[0] = mapping.data()[size - 1] = std::byte{1};
    EXPECT_FALSE(is_mapped(mapping.data() - 1)) << "what it was mapped with is given back";
    EXPECT_FALSE(is_mapped(mapping.data() + mapping.size_bytes()));
  }
}

TEST(Mapping, WhatIsNotNeededIsGivenBack) {
  Mapping mapping = Mapping::anonymous(5_MiB);
  mapping.data()[3_MiB] = std::byte{7};
  mapping.shrink(3_MiB + 1);
  EXPECT_EQ(mapping.size_bytes(), 3_MiB + page_size_bytes());
  EXPECT_EQ(mapping.data()[3_MiB], std::byte{7});
  EXPECT_FALSE(is_mapped(mapping.data() + mapping.size_bytes()));
  for (const std::uint64_t more : {std::uint64_t{4_MiB}, ~std::uint64_t{0}}) {
    mapping.shrink(more);
    EXPECT_EQ(mapping.size_bytes(), 3_MiB + page_size_bytes());
  }
  mapping.shrink(0);
  EXPECT_EQ(mapping.size_bytes(), 0U);
  mapping.shrink(0);
}

/// Of /proc/vmstat; nothing on systems that do not say.
std::optional<std::uint64_t> counted_by_the_system(const std::string& name) {
  std::ifstream counts("/proc/vmstat");
  std::string found;
  for (std::uint64_t count = 0; counts >> found >> count;) {
    if (found == name) return count;
  }
  return std::nullopt;
}

/// One that is pinned whole could not be split any more.
TEST(Mapping, AHugePageOfWhichAPartIsGivenBackIsSplitAtOnce) {
  constexpr int kMappings = 16;
  const auto given = counted_by_the_system("thp_fault_alloc");
  const auto split = counted_by_the_system("thp_split_page");
  std::vector<Mapping> mappings;
  for (int i = 0; i < kMappings; ++i) {
    mappings.push_back(Mapping::anonymous(4_MiB));
    for (std::uint64_t offset = 0; offset <= 2_MiB; offset += page_size_bytes()) {
      mappings.back().data()[offset] = std::byte{1};
    }
    mappings.back().shrink(2_MiB + 1);
    EXPECT_EQ(mappings.back().data()[2_MiB], std::byte{1});
  }
  if (!given || !split) return;
  // Where memory is in many pieces, some are not given.
  if (*counted_by_the_system("thp_fault_alloc") < *given + 2 * kMappings) return;
  EXPECT_GE(*counted_by_the_system("thp_split_page"), *split + kMappings);
}

TEST(Mapping, NothingIsAnEmptyMapping) {
  EXPECT_EQ(Mapping::anonymous(0).data(), nullptr);
  EXPECT_EQ(Mapping().size_bytes(), 0U);
}

TEST(Mapping, MoreMemoryThanThereCanBeIsABudgetError) {
  EXPECT_THROW(Mapping::anonymous(1ULL << 62U), BudgetError);
  EXPECT_THROW(Mapping::anonymous(~0ULL), BudgetError);
  try {
    Mapping::anonymous(1ULL << 62U);
  } catch (const BudgetError& error) {
    EXPECT_EQ(error.needed_bytes(), 1ULL << 62U);
  }
}

TEST(Mapping, OfAFileIsItsBytes) {
  const TemporaryFolder folder;
  const auto bytes = patterned_bytes(10'001);
  const Mapping mapping = Mapping::of_file(File::open_for_reading(folder.write("a.bin", bytes)));
  ASSERT_EQ(mapping.size_bytes(), bytes.size());
  EXPECT_EQ(std::memcmp(mapping.data(), bytes.data(), bytes.size()), 0);
}

TEST(Mapping, OfAnEmptyFileIsEmpty) {
  const TemporaryFolder folder;
  const Mapping mapping = Mapping::of_file(File::open_for_reading(folder.write_text("a.bin", "")));
  EXPECT_EQ(mapping.size_bytes(), 0U);
  EXPECT_EQ(mapping.populate(0, 0), std::error_code());
}

TEST(Mapping, MovesKeepTheMemory) {
  Mapping first = Mapping::anonymous(10);
  std::byte* const data = first.data();
  data[3] = std::byte{7};
  Mapping second = std::move(first);
  EXPECT_EQ(second.data(), data);
  Mapping third = Mapping::anonymous(10);
  third = std::move(second);
  EXPECT_EQ(third.data(), data);
  EXPECT_EQ(third.data()[3], std::byte{7});
}

TEST(Mapping, AccessOutsideTheMappingIsRefused) {
  const Mapping mapping = Mapping::anonymous(page_size_bytes());
  EXPECT_THROW(mapping.set_access(1, page_size_bytes(), Access::kNone), Error);
  EXPECT_THROW(mapping.set_access(~0ULL, 2, Access::kNone), Error);
  EXPECT_NO_THROW(mapping.set_access(page_size_bytes(), 0, Access::kNone));
  mapping.data()[0] = std::byte{1};
}

TEST(Mapping, AccessGivenBackShowsTheBytesAsTheyWere) {
  const Mapping mapping = Mapping::anonymous(2 * page_size_bytes());
  mapping.data()[5] = std::byte{9};
  mapping.set_access(0, 10, Access::kNone);
  mapping.data()[page_size_bytes()] = std::byte{1};
  mapping.set_access(0, 10, Access::kReadWrite);
  EXPECT_EQ(mapping.data()[5], std::byte{9});
}

TEST(MappingDeathTest, PagesWithoutAccessFault) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const Mapping mapping = Mapping::anonymous(2 * page_size_bytes());
  mapping.set_access(page_size_bytes() - 1, 1, Access::kNone);
  const volatile std::byte* const data = mapping.data();
  EXPECT_TRUE(data[page_size_bytes()] == std::byte{0});
  EXPECT_DEATH(static_cast<void>(data[0]), "");
}

TEST(Mapping, ReleaseTakesPagesWhollyInsideAlone) {
  const std::uint64_t page = page_size_bytes();
  const Mapping mapping = Mapping::anonymous(4 * page, HugePages::kNever);
  std::memset(mapping.data(), 1, mapping.size_bytes());
  mapping.release_pages(1, 3 * page - 2);
  EXPECT_EQ(mapping.data()[0], std::byte{1});
  EXPECT_EQ(mapping.data()[page], std::byte{0});
  EXPECT_EQ(mapping.data()[2 * page - 1], std::byte{0});
  EXPECT_EQ(mapping.data()[2 * page], std::byte{1});
  mapping.release_pages(3 * page, ~0ULL);
  EXPECT_EQ(mapping.data()[2 * page], std::byte{1});
  EXPECT_EQ(mapping.data()[3 * page], std::byte{0});
  mapping.release_pages(5 * page, 1);
}

TEST(Mapping, ReleasedPagesOfAFileComeBack) {
  const TemporaryFolder folder;
  const auto bytes = patterned_bytes(3 * page_size_bytes() + 5);
  const Mapping mapping = Mapping::of_file(File::open_for_reading(folder.write("a.bin", bytes)));
  EXPECT_EQ(mapping.populate(0, mapping.size_bytes()), std::error_code());
  mapping.release_pages(0, mapping.size_bytes());
  EXPECT_EQ(std::memcmp(mapping.data(), bytes.data(), bytes.size()), 0);
}

TEST(Mapping, DiscardedPagesAreZerosAndOthersStay) {
  const std::uint64_t page = page_size_bytes();
  const Mapping mapping = Mapping::anonymous(4 * page);
  const std::span<std::byte> bytes(mapping.data(), 4 * page);
  std::memset(mapping.data(), 1, 4 * page);
  discard_pages(bytes.subspan(page + 1, page - 1));  // no whole page
  EXPECT_EQ(mapping.data()[page + 1], std::byte{1});
  discard_pages(bytes.subspan(1, 3 * page - 1));
  EXPECT_EQ(mapping.data()[0], std::byte{1});
  EXPECT_EQ(mapping.data()[page], std::byte{0});
  EXPECT_EQ(mapping.data()[3 * page - 1], std::byte{0});
  EXPECT_EQ(mapping.data()[3 * page], std::byte{1});
}

TEST(Mapping, ReservedAddressesShowAFileOrMemory) {
  const std::uint64_t page = page_size_bytes();
  const TemporaryFolder folder;
  const auto bytes = patterned_bytes(3 * page + 5);
  const File file = File::open_for_reading(folder.write("a.bin", bytes));
  const Mapping mapping = Mapping::reserved(6 * page);
  mapping.show_file(2 * page, 3 * page, file, page);
  EXPECT_EQ(std::memcmp(mapping.data() + 2 * page, bytes.data() + page, 2 * page + 5), 0);
  mapping.data()[2 * page] = std::byte{0xEE};  // private
  EXPECT_EQ(Mapping::of_file(file).data()[page], bytes[page]);
  mapping.show_memory(2 * page, 3 * page);
  EXPECT_EQ(mapping.data()[2 * page], std::byte{0});
  EXPECT_THROW(mapping.show_file(1, page, file, 0), Error);  // not a page's multiple
}

/// What `work` gives in a forked process.
int in_a_child(const std::function<int()>& work) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(work());
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool is_mapped(std::byte* data) {
  unsigned char present = 0;
  return ::mincore(data, page_size_bytes(), &present) == 0;
}

TEST(Mapping, ChildrenGetItUnlessItIsKept) {
  Mapping mapping = Mapping::anonymous(page_size_bytes());
  mapping.data()[0] = std::byte{7};
  EXPECT_EQ(in_a_child([&] { return is_mapped(mapping.data()) ? 1 : 0; }), 1);
  mapping.keep_from_children();
  EXPECT_EQ(in_a_child([&] { return is_mapped(mapping.data()) ? 1 : 0; }), 0);
  EXPECT_EQ(mapping.data()[0], std::byte{7});
  Mapping().keep_from_children();
}

TEST(Mapping, AChildThatDidNotGetItUnmapsNothingElse) {
  Mapping kept = Mapping::anonymous(page_size_bytes());
  kept.keep_from_children();
  Mapping mapping = std::move(kept);
  EXPECT_EQ(in_a_child([&] {
              std::byte* const data = mapping.data();
              void* const others = ::mmap(data, page_size_bytes(), PROT_READ,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
              if (others != data) return 2;
              mapping = Mapping();
              return is_mapped(data) ? 1 : 0;
            }),
            1);
  std::byte* const data = mapping.data();
  mapping = Mapping();
  EXPECT_FALSE(is_mapped(data));
}

TEST(Mapping, PopulateTellsOfPagesBehindATruncation) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a.bin", patterned_bytes(4 * page_size_bytes()));
  const Mapping mapping = Mapping::of_file(File::open_for_reading(path));
  std::filesystem::resize_file(path, page_size_bytes());
  EXPECT_EQ(mapping.populate(0, page_size_bytes()), std::error_code());
  EXPECT_EQ(mapping.populate(page_size_bytes(), 1), std::errc::bad_address);
}

}  // namespace
}  // namespace tensorstream

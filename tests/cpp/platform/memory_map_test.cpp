#include "platform/memory_map.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <sstream>

#include "made_bytes/weights.h"
#include "platform/mapping.h"
#include "platform/temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// A private, writable mapping of a file, as torch's and safetensors' are.
class PrivateMapping {
 public:
  PrivateMapping(const std::string& path, std::uint64_t size_bytes, std::uint64_t offset_bytes = 0,
                 void* at = nullptr)
      : size_bytes_(size_bytes) {
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    EXPECT_GE(descriptor, 0) << path;
    void* const data = ::mmap(at, size_bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | (at == nullptr ? 0 : MAP_FIXED), descriptor,
                              static_cast<off_t>(offset_bytes));
    EXPECT_NE(data, MAP_FAILED);
    EXPECT_EQ(::close(descriptor), 0);
    data_ = static_cast<std::byte*>(data);
  }
  ~PrivateMapping() { EXPECT_EQ(::munmap(data_, size_bytes_), 0); }
  PrivateMapping(const PrivateMapping&) = delete;
  PrivateMapping& operator=(const PrivateMapping&) = delete;

  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  std::uint64_t size_bytes_;
};

void touch(const std::byte* data, std::uint64_t size_bytes) {
  const volatile std::byte* const bytes = data;
  for (std::uint64_t i = 0; i < size_bytes; i += page_size_bytes()) static_cast<void>(bytes[i]);
}

class FindFileBacking : public ::testing::Test {
 protected:
  static void expect_backing(const std::optional<FileBacking>& backing, const std::string& path,
                             std::uint64_t offset_bytes) {
    ASSERT_TRUE(backing);
    EXPECT_EQ(backing->path, path);
    EXPECT_EQ(backing->offset_bytes, offset_bytes);
  }

  const std::uint64_t page_ = page_size_bytes();
  const TemporaryFolder folder_;
  const std::vector<std::byte> bytes_ = patterned_bytes(8 * page_ + 100);
  const std::string path_ = folder_.write("weights.bin", bytes_);
  const PrivateMapping mapping_{path_, bytes_.size()};
};

TEST_F(FindFileBacking, UntouchedMemoryIsTheFiles) {
  expect_backing(find_file_backing(mapping_.data() + 123, 2 * page_), path_, 123);
}

TEST_F(FindFileBacking, ReadMemoryIsTheFiles) {
  touch(mapping_.data(), bytes_.size());
  expect_backing(find_file_backing(mapping_.data() + page_, 7 * page_ + 100), path_, page_);
}

TEST_F(FindFileBacking, AWrittenPageIsNotAndItsNeighboursAre) {
  touch(mapping_.data(), bytes_.size());
  mapping_.data()[2 * page_ + 5] ^= std::byte{1};
  EXPECT_FALSE(find_file_backing(mapping_.data(), 4 * page_));
  EXPECT_FALSE(find_file_backing(mapping_.data() + 2 * page_, page_));
  expect_backing(find_file_backing(mapping_.data(), 2 * page_), path_, 0);
  expect_backing(find_file_backing(mapping_.data() + 3 * page_, page_), path_, 3 * page_);
}

TEST_F(FindFileBacking, APageWrittenWithTheBytesItHadIsAPrivateCopy) {
  std::byte& byte = mapping_.data()[5];
  const_cast<volatile std::byte&>(byte) = byte;
  EXPECT_FALSE(find_file_backing(mapping_.data(), 10));
}

TEST_F(FindFileBacking, ABoundaryPageWrittenByANeighbourIsAPrivateCopy) {
  mapping_.data()[page_ + 10] ^= std::byte{1};
  EXPECT_FALSE(find_file_backing(mapping_.data() + page_ + 100, 3 * page_));
  EXPECT_FALSE(find_file_backing(mapping_.data() + 100, page_));
  expect_backing(find_file_backing(mapping_.data() + 2 * page_, page_), path_, 2 * page_);
}

TEST_F(FindFileBacking, TheMappingsOffsetCounts) {
  const PrivateMapping part(path_, 3 * page_, 2 * page_);
  expect_backing(find_file_backing(part.data() + 7, page_), path_, 2 * page_ + 7);
}

TEST_F(FindFileBacking, NothingReachesBehindTheFile) {
  expect_backing(find_file_backing(mapping_.data() + 8 * page_, 100), path_, 8 * page_);
  EXPECT_FALSE(find_file_backing(mapping_.data() + 8 * page_, 101));
  EXPECT_FALSE(find_file_backing(mapping_.data(), 9 * page_ + 1));
  EXPECT_FALSE(find_file_backing(mapping_.data(), ~0ULL));
  EXPECT_FALSE(find_file_backing(mapping_.data(), 0));
}

TEST_F(FindFileBacking, NeighbouringMappingsOfContinuingOffsetsAreOne) {
  const PrivateMapping whole(path_, 4 * page_);
  // Other rights split the kernel's area in two.
  ASSERT_EQ(::mprotect(whole.data() + 2 * page_, 2 * page_, PROT_READ), 0);
  expect_backing(find_file_backing(whole.data() + page_, 2 * page_), path_, page_);
}

TEST_F(FindFileBacking, NeighbouringMappingsOfOtherOffsetsAreNot) {
  const PrivateMapping whole(path_, 4 * page_);
  void* const second_half = whole.data() + 2 * page_;
  ASSERT_EQ(::munmap(second_half, 2 * page_), 0);
  const PrivateMapping other(path_, 2 * page_, 5 * page_, second_half);
  EXPECT_FALSE(find_file_backing(whole.data() + page_, 2 * page_));
  expect_backing(find_file_backing(other.data(), page_), path_, 5 * page_);
}

TEST_F(FindFileBacking, NeighbouringMappingsOfTwoFilesAreNot) {
  const PrivateMapping whole(path_, 4 * page_);
  const std::string other_path = folder_.write("other.bin", bytes_);
  void* const second_half = whole.data() + 2 * page_;
  ASSERT_EQ(::munmap(second_half, 2 * page_), 0);
  const PrivateMapping other(other_path, 2 * page_, 2 * page_, second_half);
  EXPECT_FALSE(find_file_backing(whole.data() + page_, 2 * page_));
}

TEST_F(FindFileBacking, MemoryWithoutReadAccessIsNothing) {
  const PrivateMapping whole(path_, 2 * page_);
  ASSERT_EQ(::mprotect(whole.data() + page_, page_, PROT_NONE), 0);
  EXPECT_FALSE(find_file_backing(whole.data(), 2 * page_));
}

TEST_F(FindFileBacking, AnonymousMemoryIsNothing) {
  const Mapping anonymous = Mapping::anonymous(2 * page_);
  EXPECT_FALSE(find_file_backing(anonymous.data(), page_));
  const int on_stack = 0;
  EXPECT_FALSE(find_file_backing(&on_stack, sizeof on_stack));
  EXPECT_FALSE(find_file_backing(nullptr, 8));
}

TEST_F(FindFileBacking, ADeletedFileIsNothing) {
  touch(mapping_.data(), bytes_.size());
  std::filesystem::remove(path_);
  EXPECT_FALSE(find_file_backing(mapping_.data(), page_));
}

TEST_F(FindFileBacking, AnotherFileUnderTheNameIsNothing) {
  std::filesystem::rename(folder_.write("new.bin", bytes_), path_);
  EXPECT_FALSE(find_file_backing(mapping_.data(), page_));
  // Nor one under the very name that the kernel shows for a deleted file.
  folder_.write("weights.bin (deleted)", bytes_);
  EXPECT_FALSE(find_file_backing(mapping_.data(), page_));
}

TEST_F(FindFileBacking, AFileTruncatedSinceIsNothing) {
  std::filesystem::resize_file(path_, page_);
  EXPECT_FALSE(find_file_backing(mapping_.data(), page_ + 1));
}

TEST_F(FindFileBacking, AnyNameAFileMayHave) {
  for (const char* name : {"two  spaces.bin", " leading", "trailing ", "line\nbreak", "back\\slash",
                           "not\\012an escape", "really (deleted)", "k\xC3\xBC.bin"}) {
    const std::string path = folder_.write(name, bytes_);
    const PrivateMapping mapping(path, bytes_.size());
    SCOPED_TRACE(path);
    expect_backing(find_file_backing(mapping.data() + page_, page_), path, page_);
  }
}

TEST_F(FindFileBacking, WithoutAPagemapTheBytesDecide) {
  const ProcessFiles files{.pagemap = folder_.path("no pagemap")};
  expect_backing(find_file_backing(mapping_.data() + 5, 3 * page_, files), path_, 5);
  mapping_.data()[page_ + 10] ^= std::byte{1};
  EXPECT_FALSE(find_file_backing(mapping_.data(), 3 * page_, files));
  EXPECT_FALSE(find_file_backing(mapping_.data(), page_ + 11, files));
  // Bytes of its own that nobody changed are the file's, whatever became of the page.
  expect_backing(find_file_backing(mapping_.data(), page_ + 10, files), path_, 0);
}

TEST_F(FindFileBacking, AnEndedPagemapIsUnknownAndTheBytesDecide) {
  const ProcessFiles files{.pagemap = folder_.write_text("pagemap", "")};
  expect_backing(find_file_backing(mapping_.data(), page_, files), path_, 0);
  mapping_.data()[0] ^= std::byte{1};
  EXPECT_FALSE(find_file_backing(mapping_.data(), page_, files));
}

/// Maps of a system whose stat() and maps disagree about a file's device: `elsewhere` is the inode
/// of all other memory.
std::string maps_with_device(std::uint64_t begin, std::uint64_t end, const std::string& path,
                             int elsewhere) {
  std::ostringstream maps;
  const auto line = [&](std::uint64_t from, std::uint64_t to, int inode) {
    maps << std::hex << from << "-" << to << " rw-p 00000000 ff:ff " << std::dec << inode << " "
         << path << "\n";
  };
  line(0, begin, elsewhere);
  line(begin, end, 77);
  line(end, 1ULL << 62U, elsewhere);
  return maps.str();
}

TEST_F(FindFileBacking, WhereStatNamesAnotherDeviceANewMappingOfThePathDecides) {
  const auto begin = std::bit_cast<std::uint64_t>(mapping_.data());
  const std::uint64_t end = begin + 8 * page_;
  ProcessFiles files;
  files.maps = folder_.write_text("same", maps_with_device(begin, end, path_, 77));
  expect_backing(find_file_backing(mapping_.data() + 3, page_, files), path_, 3);
  files.maps = folder_.write_text("other", maps_with_device(begin, end, path_, 78));
  EXPECT_FALSE(find_file_backing(mapping_.data() + 3, page_, files));
}

/// Writes to it are the file's, and other programs see them.
TEST_F(FindFileBacking, MemoryThatIsSharedAndWritableIsNothing) {
  const int descriptor = ::open(path_.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(descriptor, 0);
  for (const bool writable : {false, true}) {
    void* const data = ::mmap(nullptr, page_, writable ? PROT_READ | PROT_WRITE : PROT_READ,
                              MAP_SHARED, descriptor, 0);
    ASSERT_NE(data, MAP_FAILED);
    EXPECT_EQ(find_file_backing(data, page_).has_value(), !writable);
    EXPECT_EQ(::munmap(data, page_), 0);
  }
  EXPECT_EQ(::close(descriptor), 0);
}

TEST_F(FindFileBacking, WithoutDescriptorsLeftItIsAnError) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizers look at objects by descriptors of their own";
#endif
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{0, before.rlim_max};
  const std::byte* const data = mapping_.data();
  const std::uint64_t size_bytes = page_;
  int error_number = 0;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  try {
    static_cast<void>(find_file_backing(data, size_bytes));
  } catch (const IoError& error) {
    error_number = error.error_number();
  }
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(error_number, EMFILE);
}

TEST_F(FindFileBacking, WithoutMapsThereIsNothing) {
  EXPECT_FALSE(find_file_backing(mapping_.data(), page_, {.maps = folder_.path("no maps")}));
}

TEST(ParseMemoryArea, ReadsALine) {
  const auto area = parse_memory_area(
      "7f27450f7000-7f274514e000 r--p 00003000 fe:1a 329635                     /a b/c.bin ");
  ASSERT_TRUE(area);
  EXPECT_EQ(area->begin, 0x7f27450f7000U);
  EXPECT_EQ(area->end, 0x7f274514e000U);
  EXPECT_EQ(area->permissions, "r--p");
  EXPECT_EQ(area->offset_bytes, 0x3000U);
  EXPECT_EQ(area->device_major, 0xfeU);
  EXPECT_EQ(area->device_minor, 0x1aU);
  EXPECT_EQ(area->inode, 329635U);
  EXPECT_EQ(area->path, "/a b/c.bin ");
}

TEST(ParseMemoryArea, ALineMayHaveNoPath) {
  const auto area = parse_memory_area("7f27450d5000-7f27450f7000 rw-p 00000000 00:00 0 ");
  ASSERT_TRUE(area);
  EXPECT_EQ(area->path, "");
}

TEST(ParseMemoryArea, WhatIsNoLineIsNothing) {
  for (const char* line :
       {"", "x", "10", "10-", "10-20", "10-20 ", "10-20 r--p", "10-20 r--p 0", "10-20 r--p 0 1",
        "10-20 r--p 0 1:2", "10-20 r--p 0 1:2 ", "10-20 r--pp 0 1:2 3", "g-20 r--p 0 1:2 3"}) {
    EXPECT_FALSE(parse_memory_area(line)) << line;
  }
}

TEST(UnescapedPath, TurnsOctalEscapesBackAndNothingElse) {
  EXPECT_EQ(unescaped_path("/a\\012b"), "/a\nb");
  EXPECT_EQ(unescaped_path("/a\\134012"), "/a\\012");
  EXPECT_EQ(unescaped_path("/a\\019"), "/a\\019");
  EXPECT_EQ(unescaped_path("/a\\01"), "/a\\01");
  EXPECT_EQ(unescaped_path("\\012"), "\n");
}

}  // namespace
}  // namespace tensorstream

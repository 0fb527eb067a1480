#include "io/reader_conformance.h"

#include "io/disk_queue.h"
#include "io/file_opener.h"
#include "platform/disk_file.h"
#include "platform/dropped_pages.h"

namespace tensorstream {
namespace {

ReaderKind file_reader(const std::string& name, FileBackend backend) {
  return {name, Tier::kDisk,
          [backend](const TemporaryFolder& folder, std::span<const std::byte> bytes) {
            return open_file_reader(folder.write("source.bin", bytes), backend);
          }};
}

/// Reads go past the page cache, which has nothing of the file.
ReaderKind cold_file_reader() {
  return {"CachedNothing", Tier::kDisk,
          [](const TemporaryFolder& folder, std::span<const std::byte> bytes) {
            const std::string path = folder.write("source.bin", bytes);
            drop_from_page_cache(path);
            return open_file_reader(path, FileBackend::kCached);
          }};
}

ReaderKind disk_reader(const std::string& name, DiskFile (*open)(const std::string&)) {
  return {name, Tier::kDisk,
          [open](const TemporaryFolder& folder, std::span<const std::byte> bytes) {
            return create_disk_reader(open(folder.write("source.bin", bytes)),
                                      DiskQueue::create(create_thread_transfers(4)));
          }};
}

ReaderKind memory_reader() {
  return {"Memory", Tier::kRam, [](const TemporaryFolder&, std::span<const std::byte> bytes) {
            const auto owner = std::make_shared<std::vector<std::byte>>(bytes.begin(), bytes.end());
            return create_memory_reader("memory of 'w'", *owner, owner);
          }};
}

INSTANTIATE_TEST_SUITE_P(All, ReaderConformance,
                         ::testing::Values(file_reader("Mmap", FileBackend::kMmap),
                                           file_reader("Pread", FileBackend::kPread),
                                           file_reader("Direct", FileBackend::kDirect),
                                           file_reader("Cached", FileBackend::kCached),
                                           cold_file_reader(),
                                           disk_reader("Threads", DiskFile::open_direct),
                                           disk_reader("Buffered", DiskFile::open_buffered),
                                           memory_reader()),
                         [](const auto& instance) { return instance.param.name; });

TEST(MemoryReader, KeepsItsOwnerWhileItLives) {
  auto owner = std::make_shared<std::vector<std::byte>>(10);
  const std::weak_ptr<std::vector<std::byte>> watched = owner;
  auto reader = create_memory_reader("memory of 'w'", *owner, owner);
  owner.reset();
  EXPECT_FALSE(watched.expired());
  reader.reset();
  EXPECT_TRUE(watched.expired());
}

TEST(MemoryReader, SeesTheBytesAsTheyAreNow) {
  const auto owner = std::make_shared<std::vector<std::byte>>(10);
  const auto reader = create_memory_reader("memory of 'w'", *owner, owner);
  (*owner)[3] = std::byte{9};
  std::byte out{};
  reader->read(3, {&out, 1});
  EXPECT_EQ(out, std::byte{9});
}

}  // namespace
}  // namespace tensorstream

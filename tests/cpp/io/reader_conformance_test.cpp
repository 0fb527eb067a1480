#include "io/reader_conformance.h"

#include "io/device_reads.h"
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

/// Of the fake driver's GPU: what is begun is read by threads.
ReaderKind page_reader() {
  return {"PreadForAGpu", Tier::kDisk,
          [](const TemporaryFolder& folder, std::span<const std::byte> bytes) {
            return FileOpener(FileBackend::kPread, reading_gpu())
                .open(folder.write("source.bin", bytes));
          }};
}

/// Of a file that the fake driver's GPU copies from: what else is read of it.
ReaderKind pinned_reader(const std::string& name, FileBackend backend) {
  return {name, Tier::kDisk, [backend](const TemporaryFolder&, std::span<const std::byte> bytes) {
            const TemporaryFolder in_ram("/dev/shm/");  // an open file outlives its name
            return FileOpener(backend, reading_gpu()).open(in_ram.write("source.bin", bytes));
          }};
}

/// Of the fake driver's GPU: what goes to host memory, or to the device's and back.
ReaderKind gpudirect_reader() {
  return {"Gpudirect", Tier::kDisk,
          [](const TemporaryFolder& folder, std::span<const std::byte> bytes) {
            return FileOpener(FileBackend::kGpudirect, reading_gpu())
                .open(folder.write("source.bin", bytes));
          }};
}
ReaderKind device_reader(const std::string& name, long long longest_read) {
  return {
      name, Tier::kDisk,
      [longest_read](const TemporaryFolder& folder, std::span<const std::byte> bytes) {
        const FakeCuda fake;
        fake.reset();
        fake.set("cufile_longest_read", longest_read);
        const auto device = reading_gpu();
        return std::make_unique<ByWayOfDevice>(
            device,
            FileOpener(FileBackend::kGpudirect, device).open(folder.write("source.bin", bytes)));
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
                                           page_reader(), cold_file_reader(),
                                           pinned_reader("PinnedPread", FileBackend::kPread),
                                           pinned_reader("PinnedMmap", FileBackend::kMmap),
                                           disk_reader("Threads", DiskFile::open_direct),
                                           disk_reader("Buffered", DiskFile::open_buffered),
                                           gpudirect_reader(), device_reader("ToDevice", 1LL << 40),
                                           device_reader("ToDeviceInShortReads", 300'001),
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

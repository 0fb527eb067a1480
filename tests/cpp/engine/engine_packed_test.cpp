// Models whose weights are in packed files: every bit is there on the host and on GPUs, which get
// the frames as they are, and damage is the error of who needed the bytes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine/on_gpu.h"
#include "engine/open_engine.h"
#include "engine/packed_model.h"
#include "engine/packed_reader.h"
#include "engine/ring_bytes.h"
#include "io/file_opener.h"
#include "io/read_memory.h"
#include "platform/dropped_pages.h"
#include "platform/page_cache.h"
#include "store/packed_header.h"

namespace tensorstream {
namespace {

/// Counts what is read as it was, and what as frames.
class CountingReader final : public Reader {
 public:
  explicit CountingReader(std::unique_ptr<Reader> reader) : reader_(std::move(reader)) {}

  const std::string& name() const noexcept override { return reader_->name(); }
  Tier tier() const noexcept override { return reader_->tier(); }
  std::uint64_t size_bytes() const noexcept override { return reader_->size_bytes(); }
  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    reader_->read(offset_bytes, out);
    read_bytes += out.size();
  }
  std::uint64_t read_frame(std::uint64_t offset_bytes, std::uint64_t size_bytes,
                           std::span<std::byte> out) override {
    const std::uint64_t size = reader_->read_frame(offset_bytes, size_bytes, out);
    if (size != 0) framed_bytes += size_bytes;
    return size;
  }

  std::atomic<std::uint64_t> read_bytes = 0;
  std::atomic<std::uint64_t> framed_bytes = 0;

 private:
  const std::unique_ptr<Reader> reader_;
};

/// By how its file is read.
class EnginePacked : public ::testing::TestWithParam<FileBackend> {};
INSTANTIATE_TEST_SUITE_P(Backends, EnginePacked,
                         ::testing::Values(FileBackend::kPread, FileBackend::kDirect,
                                           FileBackend::kCached),
                         [](const auto& instance) {
                           const bool direct = instance.param == FileBackend::kDirect;
                           const bool pread = instance.param == FileBackend::kPread;
                           return direct ? "Direct" : pread ? "Pread" : "Cached";
                         });

TEST_P(EnginePacked, TheHostHasEveryBitInEveryWayOfLoading) {
  const PackedModel packed;
  for (const Prefetch prefetch :
       {Prefetch::kNone, Prefetch::kNext, Prefetch::kAdaptive, Prefetch::kAhead}) {
    const ModelSpec spec = packed.spec(GetParam());
    for (const std::uint64_t budget : budgets_of(spec, 3)) {
      const auto device = checking_device();
      const auto engine = open_engine(*device, spec, budget, with_prefetch(prefetch));
      Computation computation(*engine, packed.model);
      for (int pass = 0; pass < 3; ++pass) computation.pass(device->caller_stream());
      device->caller_stream().synchronize();
      EXPECT_EQ(computation.wrong(), 0U);
      EXPECT_EQ(computation.right(), 3 * packed.model.tensor_count());
      EXPECT_EQ(engine->statistics().source_ram_bytes, 0U);
    }
  }
}

TEST_P(EnginePacked, RowsAreReadAcrossChunksAndFrames) {
  const PackedModel packed;
  const auto device = checking_device();
  const ModelSpec spec = packed.spec(GetParam());
  const auto engine = open_engine(*device, spec, smallest_budget_of(spec));
  const std::uint64_t row_bytes = 3000;
  const std::vector<std::int64_t> rows = {0, 999, 698, 699, 5, 700, 5};
  Bytes out(rows.size() * row_bytes);
  engine->read_rows(0, rows, row_bytes, out);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto truth =
        packed.model.bytes(0)->begin() + rows[i] * static_cast<std::int64_t>(row_bytes);
    EXPECT_TRUE(std::equal(truth, truth + static_cast<std::int64_t>(row_bytes),
                           out.begin() + static_cast<std::int64_t>(i * row_bytes)))
        << "row " << rows[i];
  }
}

TEST_P(EnginePacked, DamageIsTheErrorOfTheAcquireThatNeededIt) {
  for (const Prefetch prefetch : {Prefetch::kNone, Prefetch::kAdaptive, Prefetch::kAhead}) {
    const PackedModel packed;
    packed.damage(3);
    const ModelSpec spec = packed.spec(GetParam());
    const auto device = checking_device();
    Stream& stream = device->caller_stream();
    const auto engine =
        open_engine(*device, spec, smallest_budget_of(spec), with_prefetch(prefetch));
    Computation computation(*engine, packed.model);
    for (int pass = 0; pass < 2; ++pass) {
      for (const GroupId group : {0U, 2U, 3U}) EXPECT_TRUE(computation.use(group, stream));
      try {
        static_cast<void>(engine->acquire(1, stream));
        ADD_FAILURE() << "damaged bytes were used";
      } catch (const FormatError& error) {
        EXPECT_EQ(error.path(), packed.path());
        EXPECT_EQ(error.tensor(), packed.model.name(3));
        EXPECT_THAT(error.rule(), ::testing::HasSubstr("chunk"));
      }
    }
    stream.synchronize();
    EXPECT_EQ(computation.wrong(), 0U);
  }
}

TEST_P(EnginePacked, AFileThatIsWrittenToIsAnError) {
  const PackedModel packed;
  const auto reader = open_packed_reader(packed.path(), FileOpener(GetParam()));
  const ModelSpec spec = packed.spec(GetParam());
  std::filesystem::last_write_time(
      packed.path(), std::filesystem::file_time_type::clock::now() + std::chrono::hours(1));
  const Extent extent = spec.tensors[0].extents[0];
  Bytes out(extent.size_bytes);
  EXPECT_THROW(reader->read(extent.offset_bytes, out), IoError);
}

/// Of a file that the page cache has nothing of.
TEST(PackedDiskReader, BringsNothingToThePageCache) {
  const PackedModel packed;
  const ModelSpec spec = packed.spec();
  if (!drop_from_page_cache(packed.path())) GTEST_SKIP() << "this file system keeps its pages";
  const File file = File::open_for_reading(packed.path());
  for (const FileBackend backend : {FileBackend::kDirect, FileBackend::kCached}) {
    const auto reader = open_packed_reader(packed.path(), FileOpener(backend));
    for (int pass = 0; pass < 2; ++pass) {
      const std::uint64_t before = bytes_in_page_cache(file, 0, file.size_bytes());
      for (const TensorSpec& tensor : spec.tensors) {
        const Extent extent = tensor.extents[0];
        Bytes out(extent.size_bytes);
        reader->read(extent.offset_bytes, out);
        EXPECT_EQ(out, *packed.model.bytes(static_cast<TensorId>(&tensor - spec.tensors.data())));
      }
      // The first pass looks where frames begin.
      if (pass == 0) continue;
      EXPECT_EQ(bytes_in_page_cache(file, 0, file.size_bytes()), before);
    }
    EXPECT_LT(bytes_in_page_cache(file, 0, file.size_bytes()), file.size_bytes() / 2);
  }
}

/// Readers that go on by themselves have begun to read before they are waited for.
TEST(PackedDiskReader, ReadsThatAreGivenUpTouchNothingLater) {
  const PackedModel packed;
  const auto reader = open_packed_reader(packed.path(), FileOpener(FileBackend::kDirect));
  const Extent extent = packed.spec().tensors[0].extents[0];
  for (int i = 0; i < 20; ++i) {
    Bytes out(extent.size_bytes, std::byte{7});
    {
      const PendingRead given_up = reader->begin_read(extent.offset_bytes, out);
    }
    EXPECT_EQ(out, Bytes(extent.size_bytes, std::byte{7}));
  }
}

/// More reads at a time than there are slots for.
TEST(PackedDiskReader, ManyReadsAtATime) {
  const PackedModel packed;
  const auto reader = open_packed_reader(packed.path(), FileOpener(FileBackend::kDirect));
  const Extent extent = packed.spec().tensors[0].extents[0];
  std::vector<Bytes> outs(ReadMemory::kSlots + 5, Bytes(extent.size_bytes));
  std::vector<PendingRead> reads;
  for (Bytes& out : outs) reads.push_back(reader->begin_read(extent.offset_bytes, out));
  for (PendingRead& read : reads) read.wait();
  for (const Bytes& out : outs) EXPECT_EQ(out, *packed.model.bytes(0));
}

class EnginePackedAtHome : public OnGpu {
 protected:
  static EngineOptions coded(Prefetch prefetch) {
    EngineOptions options = with_prefetch(prefetch);
    options.compression = 1;
    options.piece_bytes = std::uint64_t{1} << 20U;
    return options;
  }
  std::unique_ptr<Engine> open(const ModelSpec& spec, std::uint64_t groups_bytes,
                               Prefetch prefetch = Prefetch::kAdaptive) const {
    const EngineOptions options = coded(prefetch);
    return open_engine(*device_, spec, groups_bytes + ring_bytes_of(spec, options), options);
  }
};

TEST_P(EnginePackedAtHome, EveryBitIsThereFromTheFileAndFromHome) {
  const PackedModel packed;
  for (const FileBackend backend : {FileBackend::kPread, FileBackend::kDirect}) {
    const ModelSpec spec = packed.spec(backend);
    for (const std::uint64_t budget : budgets_of(spec, 3, ComputePlace::kAccelerator)) {
      SCOPED_TRACE("budget " + std::to_string(budget));
      const auto engine = open(spec, budget);
      ReadBack read(*engine, packed.model, *stream_);
      read.pass();
      EXPECT_EQ(read.wrong(), 0) << "from the file";
      bring_all_home(*engine);
      for (int i = 0; i < 3; ++i) read.pass();
      EXPECT_EQ(read.wrong(), 0) << "from home";
    }
  }
}

TEST_P(EnginePackedAtHome, NothingIsDecodedToBeEncodedAgain) {
  const PackedModel packed;
  const auto counted = std::make_shared<CountingReader>(open_packed_reader(packed.path()));
  const ModelSpec spec = packed.spec(counted);
  const auto engine =
      open(spec, smallest_budget_of(spec, ComputePlace::kAccelerator), Prefetch::kNone);
  const std::uint64_t before = counted->read_bytes;
  bring_all_home(*engine);
  const File file = File::open_for_reading(packed.path());
  std::uint64_t encoded_bytes = 0;
  std::uint64_t other_bytes = 0;
  for (const PackedTensor& tensor : read_packed_header(file).tensors) {
    // The second group is mostly of a type that is not coded: its home holds plain bytes.
    const bool framed = tensor.encoded && !tensor.original.name.starts_with("block.1.");
    (framed ? encoded_bytes : other_bytes) += tensor.original.size_bytes;
  }
  EXPECT_GT(encoded_bytes, 10'000'000U);
  EXPECT_EQ(counted->framed_bytes, encoded_bytes);
  EXPECT_EQ(counted->read_bytes - before, other_bytes);
}

TEST_P(EnginePackedAtHome, DamageIsFoundBeforeTheDeviceSeesIt) {
  const PackedModel packed;
  packed.damage(0);
  const ModelSpec spec = packed.spec();
  const auto engine = open(spec, smallest_budget_of(spec, ComputePlace::kAccelerator));
  EXPECT_THROW(engine->bring_home(0), FormatError);
  for (const GroupId group : {1U, 2U, 3U}) engine->bring_home(group);
  ReadBack read(*engine, packed.model, *stream_);
  for (int pass = 0; pass < 2; ++pass) {
    EXPECT_THROW(read.use(0), FormatError);
    for (const GroupId group : {1U, 2U, 3U}) EXPECT_TRUE(read.use(group));
  }
  EXPECT_EQ(read.wrong(), 0);
}

TS_ON_EACH_GPU(EnginePackedAtHome);

}  // namespace
}  // namespace tensorstream

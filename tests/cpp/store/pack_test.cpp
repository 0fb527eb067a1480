// Checkpoints are packed and come back byte for byte.
#include "store/pack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "packed_files.h"
#include "platform/folder.h"
#include "store/checkpoint.h"
#include "store/packed_header.h"
#include "store/packed_index.h"
#include "store/safetensors.h"
#include "tensorstream/error.h"

namespace tensorstream::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

std::map<std::string, std::string> without_hidden(std::map<std::string, std::string> files) {
  files.erase(".cache/left.lock");
  files.erase(".gitattributes");
  return files;
}

TEST(Pack, AFolderOfShardsComesBackByteForByte) {
  const TemporaryFolder folder;
  write_sharded(folder);
  const auto original = without_hidden(files_below(folder.path("src")));
  for (const std::uint32_t level : {0U, 1U, 4U, 9U}) {
    const std::string name = std::to_string(level);
    const CheckpointSummary packed = pack_checkpoint(folder.path("src"), folder.path("p" + name),
                                                     {CompressionLevel(level), 2}, {});
    EXPECT_EQ(packed.files, 2U);
    EXPECT_EQ(packed.tensors, 10U);
    EXPECT_EQ(packed.encoded_tensors, level == 0 ? 0U : 3U);
    const CheckpointSummary verified = verify_checkpoint(folder.path("p" + name), 2, {});
    EXPECT_EQ(verified.encoded_tensors, packed.encoded_tensors);
    EXPECT_EQ(verified.original_bytes, packed.original_bytes);
    EXPECT_EQ(verified.stored_bytes, packed.stored_bytes);
    unpack_checkpoint(folder.path("p" + name), folder.path("u" + name), 2, {});
    EXPECT_EQ(files_below(folder.path("u" + name)), original);
  }
}

TEST(Pack, OneFileIsPackedAloneAndUnpackedAlone) {
  const TemporaryFolder folder;
  const std::string path = folder.write("src/model.safetensors", mixed_file());
  folder.write("src/config.json", "{}");
  pack_checkpoint(path, folder.path("p"), kTwoThreads, {});
  EXPECT_FALSE(fs::exists(folder.path("p/config.json")));
  unpack_checkpoint(folder.path("p/packed-model.safetensors"), folder.path("u"), 2, {});
  EXPECT_EQ(files_below(folder.path("u")),
            (std::map<std::string, std::string>{{"model.safetensors", mixed_file()}}));
}

TEST(Pack, TheBytesAreTheSameForEveryNumberOfThreads) {
  const TemporaryFolder folder;
  write_sharded(folder);
  for (const unsigned threads : {1U, 2U, 5U}) {
    pack_checkpoint(folder.path("src"), folder.path("p" + std::to_string(threads)),
                    {CompressionLevel(4), threads}, {});
  }
  EXPECT_EQ(files_below(folder.path("p1")), files_below(folder.path("p2")));
  EXPECT_EQ(files_below(folder.path("p1")), files_below(folder.path("p5")));
}

TEST(Pack, PackedFilesAreSafetensorsWithAlignedTensors) {
  const TemporaryFolder folder;
  const std::string path = folder.write("model.safetensors", mixed_file());
  const CheckpointSummary packed = pack_checkpoint(path, folder.path("p"), kTwoThreads, {});
  EXPECT_LT(packed.stored_bytes, packed.original_bytes);
  const std::string file = folder.path("p/packed-model.safetensors");
  const SafetensorsHeader header = read_safetensors_header(file);
  std::map<std::string, StoredTensor> tensors;
  for (const StoredTensor& tensor : header.tensors) {
    tensors.emplace(tensor.name, tensor);
    if (tensor.name.starts_with("tensorstream.padding.") || tensor.size_bytes == 0) continue;
    EXPECT_EQ(tensor.offset_bytes % (tensor.size_bytes < 4096 ? 64 : 4096), 0U) << tensor.name;
  }
  EXPECT_EQ(tensors.at("tensorstream.frames.big").dtype, Dtype::kU8);
  EXPECT_EQ(tensors.at("tensorstream.frames.big").size_bytes % 4096, 0U);
  EXPECT_FALSE(tensors.contains("big"));
  // Neither noise nor integers are worth coding: they are as they were.
  for (const char* name : {"norm", "ids", "empty", "noise", "long", "scalar"}) {
    EXPECT_TRUE(tensors.contains(name)) << name;
  }
  EXPECT_EQ(tensors.at("long").shape, (std::vector<std::uint64_t>{600000}));
}

TEST(Pack, APackedHeaderTellsOfTheTensorsAsTheyWere) {
  const TemporaryFolder folder;
  const std::string path = folder.write("model.safetensors", mixed_file());
  pack_checkpoint(path, folder.path("p"), kTwoThreads, {});
  const SafetensorsHeader original = read_safetensors_header(path);
  const PackedHeader packed =
      read_packed_header(File::open_for_reading(folder.path("p/packed-model.safetensors")));
  ASSERT_EQ(packed.tensors.size(), original.tensors.size());
  for (std::size_t i = 0; i < original.tensors.size(); ++i) {
    EXPECT_EQ(packed.tensors[i].original.name, original.tensors[i].name);
    EXPECT_EQ(packed.tensors[i].original.dtype, original.tensors[i].dtype);
    EXPECT_EQ(packed.tensors[i].original.shape, original.tensors[i].shape);
    EXPECT_EQ(packed.tensors[i].original.offset_bytes, original.tensors[i].offset_bytes);
  }
}

TEST(Pack, ATargetThatIsALinkIsSaidToBeOne) {
  const TemporaryFolder folder;
  const std::string path = folder.write("model.safetensors", mixed_file());
  fs::create_directory(folder.path("empty"));
  fs::create_directory_symlink(folder.path("empty"), folder.path("link"));
  fs::create_directory_symlink(folder.path("nowhere"), folder.path("dangling"));
  for (const char* name : {"link", "dangling"}) {
    EXPECT_THAT([&] { pack_checkpoint(path, folder.path(name), kTwoThreads, {}); },
                ThrowsMessage<ConfigError>(HasSubstr("is a link")));
  }
}

/// What the index lists beside the weights would be missed by nobody.
TEST(Pack, SeveralPackedFilesWithoutTheirIndexAreNoCheckpoint) {
  const TemporaryFolder folder;
  write_sharded(folder);
  pack_checkpoint(folder.path("src"), folder.path("p"), kTwoThreads, {});
  fs::remove(folder.path(std::string("p/") + kPackedIndexName));
  fs::rename(folder.path("p/sub/packed-model-2.safetensors"),
             folder.path("p/packed-model-2.safetensors"));
  for (const auto& use : std::vector<std::function<void(const std::string&)>>{
           [](const std::string& path) { static_cast<void>(Checkpoint::open(path)); },
           [](const std::string& path) { verify_checkpoint(path, 1, {}); },
           [&](const std::string& path) { unpack_checkpoint(path, folder.path("u"), 1, {}); }}) {
    EXPECT_THAT([&] { use(folder.path("p")); },
                ThrowsMessage<FormatError>(HasSubstr("the folder has no 'packed.safetensors.")));
  }
}

TEST(Pack, AFolderWithoutItsIndexIsNoPackedCheckpoint) {
  const TemporaryFolder folder;
  pack_checkpoint(folder.write("model.safetensors", mixed_file()), folder.path("p"), kTwoThreads,
                  {});
  fs::remove(folder.path("p/packed.safetensors.index.json"));
  const auto refused = AllOf(HasSubstr("packed-model.safetensors"),
                             HasSubstr("the folder has no 'packed.safetensors.index.json'"));
  EXPECT_THAT([&] { verify_checkpoint(folder.path("p"), 1, {}); },
              ThrowsMessage<FormatError>(refused));
  EXPECT_THAT([&] { unpack_checkpoint(folder.path("p"), folder.path("u"), 1, {}); },
              ThrowsMessage<FormatError>(refused));
  EXPECT_THAT([&] { Checkpoint::open(folder.path("p")); }, ThrowsMessage<FormatError>(refused));
  EXPECT_NO_THROW(verify_checkpoint(folder.path("p/packed-model.safetensors"), 1, {}));
}

TEST(Pack, WhatIsPackedIsNotPackedAgain) {
  const TemporaryFolder folder;
  const std::string path = folder.write("model.safetensors", mixed_file());
  pack_checkpoint(path, folder.path("p"), kTwoThreads, {});
  const std::string file = folder.path("p/packed-model.safetensors");
  const auto refused = AllOf(HasSubstr(file), HasSubstr("packed"), HasSubstr("unpack"));
  for (const std::string& source : {folder.path("p"), file}) {
    EXPECT_THAT([&] { pack_checkpoint(source, folder.path("q"), kTwoThreads, {}); },
                ThrowsMessage<UnsupportedError>(refused));
  }
  EXPECT_FALSE(fs::exists(folder.path("q")));
  EXPECT_THAT([&] { unpack_checkpoint(path, folder.path("q"), 1, {}); },
              ThrowsMessage<ConfigError>(HasSubstr("is not packed")));
}

TEST(Pack, PlainWeightsBesidePackedOnesAreRefused) {
  const std::string plain = file_of({{"norm", "F32", "[3]", noise(12)}});
  for (const std::string source : {"model.safetensors", "w.safetensors"}) {
    const TemporaryFolder folder;
    folder.write("src/" + source, mixed_file());
    pack_checkpoint(folder.path("src"), folder.path("p"), kTwoThreads, {});
    folder.write("p/other.safetensors", plain);
    EXPECT_TRUE(Checkpoint::open(folder.path("p")).packed());
    folder.write("p/" + source, plain);
    const auto refusal = ThrowsMessage<ConfigError>(AllOf(
        HasSubstr("'" + source + "'"), HasSubstr("Remove the other"), HasSubstr("checkpoint=")));
    EXPECT_THAT([&] { Checkpoint::open(folder.path("p")); }, refusal);
    EXPECT_THAT([&] { verify_checkpoint(folder.path("p"), 1, {}); }, refusal);
    EXPECT_THAT([&] { unpack_checkpoint(folder.path("p"), folder.path("u"), 1, {}); }, refusal);
    EXPECT_TRUE(Checkpoint::open(folder.path("p/packed.safetensors.index.json")).packed());
    EXPECT_FALSE(Checkpoint::open(folder.path("p/" + source)).packed());
  }
}

TEST(Pack, ShardsSavedIntoAPackedFolderAreRefused) {
  const TemporaryFolder folder;
  folder.write("src/model.safetensors", mixed_file());
  pack_checkpoint(folder.path("src"), folder.path("p"), kTwoThreads, {});
  folder.write("p/model-1.safetensors", file_of({{"norm", "F32", "[3]", noise(12)}}));
  folder.write(std::string("p/") + kShardedIndex,
               R"({"weight_map":{"norm":"model-1.safetensors"}})");
  EXPECT_THAT([&] { Checkpoint::open(folder.path("p")); },
              ThrowsMessage<ConfigError>(HasSubstr(kShardedIndex)));
}

// Such an index is carried, and is no sign of a later save.
TEST(Pack, AFolderWithAnIndexThatWasLeftIsPackedAndComesBack) {
  const TemporaryFolder folder;
  folder.write("src/model.safetensors", mixed_file());
  folder.write(std::string("src/") + kShardedIndex,
               R"({"weight_map":{"a":"model-1.safetensors"}})");
  pack_checkpoint(folder.path("src"), folder.path("p"), kTwoThreads, {});
  EXPECT_TRUE(Checkpoint::open(folder.path("p")).packed());
  verify_checkpoint(folder.path("p"), 1, {});
  unpack_checkpoint(folder.path("p"), folder.path("u"), 1, {});
  EXPECT_EQ(files_below(folder.path("u")), files_below(folder.path("src")));
}

TEST(Pack, NamesOfThePackedFormatAreRefused) {
  const TemporaryFolder folder;
  const std::string path = folder.write("m.safetensors", one_tensor("tensorstream.frames.w", 4));
  EXPECT_THAT([&] { pack_checkpoint(path, folder.path("p"), kTwoThreads, {}); },
              ThrowsMessage<UnsupportedError>(HasSubstr("'tensorstream.frames.w'")));
  const std::string blob = folder.write("blob", one_tensor("w", 4));
  EXPECT_THAT([&] { pack_checkpoint(blob, folder.path("p"), kTwoThreads, {}); },
              ThrowsMessage<ConfigError>(HasSubstr(".safetensors")));
}

TEST(Pack, ACheckpointWithoutTensorsIsRefused) {
  const TemporaryFolder folder;
  for (const char* header : {"{}", R"({"__metadata__":{"format":"pt"}})"}) {
    const std::string path = folder.write("src/model.safetensors", safetensors_bytes(header, 0));
    for (const std::string& source : {path, folder.path("src")}) {
      EXPECT_THAT([&] { pack_checkpoint(source, folder.path("p"), kTwoThreads, {}); },
                  ThrowsMessage<ConfigError>(AllOf(HasSubstr(path), HasSubstr("no tensors"))));
    }
  }
  EXPECT_FALSE(fs::exists(folder.path("p")));
}

TEST(Pack, AShardThatIsNamedAsThePackedFileOfAnotherIsRefused) {
  const TemporaryFolder folder;
  folder.write("src/a.safetensors", one_tensor("a", 4));
  folder.write("src/packed-a.safetensors", one_tensor("b", 4));
  folder.write(std::string("src/") + kShardedIndex,
               R"({"weight_map":{"a":"a.safetensors","b":"packed-a.safetensors"}})");
  EXPECT_THAT([&] { pack_checkpoint(folder.path("src"), folder.path("p"), kTwoThreads, {}); },
              ThrowsMessage<UnsupportedError>(
                  AllOf(HasSubstr("packed-a.safetensors"), HasSubstr("rename"))));
  EXPECT_FALSE(fs::exists(folder.path("p")));
}

TEST(Pack, ATargetThatHoldsSomethingIsLeftAlone) {
  const TemporaryFolder folder;
  const std::string path = folder.write("m.safetensors", one_tensor("w", 4));
  folder.write("full/mine", "x");
  folder.write("file", "x");
  fs::create_directory(folder.path("empty"));
  for (const char* target : {"full", "full/", "file"}) {
    EXPECT_THROW(pack_checkpoint(path, folder.path(target), kTwoThreads, {}), ConfigError);
  }
  EXPECT_THROW(pack_checkpoint(path, "", kTwoThreads, {}), ConfigError);
  EXPECT_EQ(read_file(folder.path("full/mine")), "x");
  EXPECT_NO_THROW(pack_checkpoint(path, folder.path("empty/"), kTwoThreads, {}));
  EXPECT_NO_THROW(pack_checkpoint(path, folder.path("a/new/one"), kTwoThreads, {}));
  EXPECT_NO_THROW(verify_checkpoint(folder.path("empty"), 1, {}));
  EXPECT_NO_THROW(verify_checkpoint(folder.path("a/new/one"), 1, {}));
}

/// Weights that came with another name of the folder, or a link to it, are in place all the same.
TEST(Pack, AFolderThatIsRenamedAndNoMoreIsAnError) {
  const TemporaryFolder folder;
  write_sharded(folder);
  bool renamed = false;
  const ProgressSink sink = [&](std::uint64_t, std::uint64_t) {
    if (!std::exchange(renamed, true)) fs::rename(folder.path("src"), folder.path("elsewhere"));
  };
  EXPECT_THROW(
      pack_checkpoint(folder.path("src"), folder.path("p"), {CompressionLevel(4), 1}, sink),
      IoError);
  pack_checkpoint(folder.path("elsewhere"), folder.path("p"), {CompressionLevel(4), 1}, nullptr);
}

TEST(Pack, WhatTheSinkRaisesEndsTheWorkAndLeavesNothing) {
  const TemporaryFolder folder;
  write_sharded(folder);
  const std::size_t before = files_below(folder.path()).size();
  std::uint64_t calls = 0;
  EXPECT_THROW(pack_checkpoint(folder.path("src"), folder.path("p"), kTwoThreads,
                               [&](std::uint64_t, std::uint64_t) {
                                 if (++calls == 2) throw std::runtime_error("stop");
                               }),
               std::runtime_error);
  EXPECT_EQ(files_below(folder.path()).size(), before);
  EXPECT_FALSE(fs::exists(folder.path("p")));
  EXPECT_FALSE(fs::exists(folder.path(".p.tensorstream-partial")));
}

TEST(Pack, TheSinkIsToldOfAllBytes) {
  const TemporaryFolder folder;
  write_sharded(folder);
  std::uint64_t last = 0;
  std::uint64_t all = 0;
  const ProgressSink sink = [&](std::uint64_t done, std::uint64_t total) {
    EXPECT_GE(done, last);
    EXPECT_LE(done, total);
    last = done;
    all = total;
  };
  pack_checkpoint(folder.path("src"), folder.path("p"), kTwoThreads, sink);
  EXPECT_GT(last, 8'000'000U);
  EXPECT_EQ(last, all);
}

TEST(Pack, WhatAKilledRunLeftIsRemovedAndWhatRunsIsNot) {
  const TemporaryFolder folder;
  const std::string path = folder.write("m.safetensors", one_tensor("w", 4));
  folder.write(".p.tensorstream-partial/packed-m.safetensors", "half");
  folder.write(".p.tensorstream-partial/old/rest", "half");
  {
    const LockedFolder other = LockedFolder::hold(folder.path(".p.tensorstream-partial"));
    EXPECT_THAT([&] { pack_checkpoint(path, folder.path("p"), kTwoThreads, {}); },
                ThrowsMessage<IoError>(HasSubstr("another process")));
    EXPECT_TRUE(fs::exists(folder.path(".p.tensorstream-partial/old/rest")));
  }
  pack_checkpoint(path, folder.path("p"), kTwoThreads, {});
  EXPECT_FALSE(fs::exists(folder.path(".p.tensorstream-partial")));
  EXPECT_EQ(files_below(folder.path("p")).size(), 2U);
  EXPECT_NO_THROW(verify_checkpoint(folder.path("p"), 1, {}));
}

TEST(Verify, OfPlainFilesLooksAtHeadersAndIndex) {
  const TemporaryFolder folder;
  write_sharded(folder);
  const CheckpointSummary plain = verify_checkpoint(folder.path("src"), 2, {});
  EXPECT_EQ(plain.files, 2U);
  EXPECT_EQ(plain.tensors, 10U);
  EXPECT_EQ(plain.encoded_tensors, 0U);
  EXPECT_EQ(plain.original_bytes, plain.stored_bytes);
  fs::resize_file(folder.path("src/model-1.safetensors"), 1'000'000);
  EXPECT_THROW(verify_checkpoint(folder.path("src"), 2, {}), FormatError);
}

}  // namespace
}  // namespace tensorstream::testing

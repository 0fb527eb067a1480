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
#include "store/safetensors.h"
#include "tensorstream/error.h"

namespace tensorstream::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr const char* kIndex = "model.safetensors.index.json";

/// Two shards, one in a folder, with an index, and files to carry along.
void write_sharded(const TemporaryFolder& folder) {
  folder.write("src/model-1.safetensors", mixed_file());
  folder.write("src/sub/model-2.safetensors",
               file_of({{"head", "F16", "[40000]", noise(80'000)},
                        {"last", "BF16", "[300,100]", weights(30'000, 9)}}));
  std::string map;
  for (const char* name : {"norm", "big", "ids", "empty", "noise", "long", "scalar", "second"}) {
    map += std::string("\"") + name + R"(": "model-1.safetensors",)";
  }
  folder.write(std::string("src/") + kIndex,
               R"({"metadata": {"total_size": 7, "é": [1.5]}, "weight_map": {)" + map +
                   R"("head":"sub/model-2.safetensors", "last":"sub/model-2.safetensors"}})"
                   "\n");
  folder.write("src/config.json", "{\"model_type\": \"é\"}");
  folder.write("src/tokenizer/vocab.txt", noise(3'000'000, 4));
  folder.write("src/empty.txt", "");
  folder.write("src/.cache/left.lock", "out");
  folder.write("src/.gitattributes", "out");
}

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
  folder.write(std::string("p/") + kIndex, R"({"weight_map":{"norm":"model-1.safetensors"}})");
  EXPECT_THAT([&] { Checkpoint::open(folder.path("p")); },
              ThrowsMessage<ConfigError>(HasSubstr(kIndex)));
}

// Such an index is carried, and is no sign of a later save.
TEST(Pack, AFolderWithAnIndexThatWasLeftIsPackedAndComesBack) {
  const TemporaryFolder folder;
  folder.write("src/model.safetensors", mixed_file());
  folder.write(std::string("src/") + kIndex, R"({"weight_map":{"a":"model-1.safetensors"}})");
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
  folder.write(std::string("src/") + kIndex,
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

TEST(Pack, ADiskThatIsTooSmallIsRefusedBeforeAnythingIsWritten) {
  const TemporaryFolder folder;
  // 4 TiB of zeros that take no room.
  constexpr std::uint64_t kHuge = std::uint64_t{1} << 42U;
  const std::string size = std::to_string(kHuge);
  const std::string path = folder.write(
      "huge.safetensors",
      safetensors_bytes(
          R"({"w":{"dtype":"U8","shape":[)" + size + R"(],"data_offsets":[0,)" + size + "]}}", 0));
  std::error_code error;
  fs::resize_file(path, fs::file_size(path) + kHuge, error);
  if (error) GTEST_SKIP() << "this file system holds no such file: " << error.message();
  if (free_disk_bytes(folder.path()) > kHuge) GTEST_SKIP() << "this disk is large";
  try {
    pack_checkpoint(path, folder.path("p"), kTwoThreads,
                    [](std::uint64_t, std::uint64_t) { throw std::runtime_error("it has begun"); });
    FAIL() << "packed";
  } catch (const IoError& raised) {
    EXPECT_EQ(raised.error_number(), ENOSPC);
    EXPECT_THAT(raised.what(), AllOf(HasSubstr(folder.path("p")), HasSubstr("are free")));
  }
  const auto left = fs::directory_iterator(folder.path());
  EXPECT_EQ(std::distance(begin(left), end(left)), 1);
}

TEST(Pack, ASourceThatChangesMeanwhileIsAnError) {
  const TemporaryFolder folder;
  const std::string path = folder.write("m.safetensors", mixed_file());
  bool changed = false;
  const ProgressSink change = [&](std::uint64_t, std::uint64_t) {
    if (std::exchange(changed, true)) return;
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1, std::ios::end);
    file.put('!');
  };
  try {
    pack_checkpoint(path, folder.path("p"), {CompressionLevel(4), 1}, change);
    FAIL() << "packed";
  } catch (const IoError& error) {
    EXPECT_EQ(error.path(), path);
    EXPECT_THAT(error.what(), HasSubstr("changed since it was opened"));
  }
  EXPECT_TRUE(changed);
  EXPECT_EQ(files_below(folder.path()).size(), 1U);
}

/// Changes `change` of a folder, once the last of its files is being copied; false where it is
/// packed.
bool is_refused_beside(const std::function<void(const fs::path& source)>& change) {
  const TemporaryFolder folder;
  write_sharded(folder);
  bool changed = false;
  const ProgressSink sink = [&](std::uint64_t done, std::uint64_t total) {
    const bool all_is_open = total - done < 1'500'000;
    if (all_is_open && !std::exchange(changed, true)) change(folder.path("src"));
  };
  bool refused = false;
  try {
    pack_checkpoint(folder.path("src"), folder.path("p"), {CompressionLevel(4), 1}, sink);
  } catch (const IoError&) {
    refused = true;
  }
  EXPECT_TRUE(changed);
  EXPECT_NE(fs::exists(folder.path("p")), refused);
  return refused;
}

void replace(const fs::path& path) {
  const fs::path other = path.string() + ".other";
  fs::copy_file(path, other);
  fs::rename(other, path);
}

/// What is there at the end is what was packed: no weights of one version beside the config of
/// another.
TEST(Pack, AFolderOfWhichAnythingIsExchangedMeanwhileIsAnError) {
  for (const char* name : {"model-1.safetensors", "sub/model-2.safetensors", kIndex}) {
    EXPECT_TRUE(is_refused_beside([&](const fs::path& source) { replace(source / name); })) << name;
  }
  EXPECT_TRUE(is_refused_beside(
      [](const fs::path& source) { std::ofstream(source / "empty.txt") << "written to"; }));
  EXPECT_TRUE(is_refused_beside([](const fs::path& source) {
    std::ofstream(source / "new.json") << "{\"model_type\": \"e\"}";
    fs::rename(source / "new.json", source / "config.json");
  }));
  EXPECT_TRUE(is_refused_beside(
      [](const fs::path& source) { fs::remove(source / "tokenizer/vocab.txt"); }));
  EXPECT_TRUE(is_refused_beside([](const fs::path& source) {
    fs::rename(source, source.string() + ".old");
    fs::copy(source.string() + ".old", source, fs::copy_options::recursive);
  }));
}

/// The same bytes under another inode, another link to them, and what came since are no other
/// state.
TEST(Pack, AFolderOfWhichNoByteIsAnotherIsPacked) {
  EXPECT_FALSE(is_refused_beside([](const fs::path& source) { replace(source / "config.json"); }));
  EXPECT_FALSE(is_refused_beside([](const fs::path& source) {
    fs::permissions(source / "config.json", fs::perms::owner_read);
  }));
  EXPECT_FALSE(
      is_refused_beside([](const fs::path& source) { std::ofstream(source / "a.log") << "new"; }));
}

/// Between two states of a folder it is in the other one as its config is copied.
TEST(Pack, AFolderThatIsExchangedAndExchangedBackIsAnError) {
  const TemporaryFolder folder;
  write_sharded(folder);
  fs::copy(folder.path("src"), folder.path("other"), fs::copy_options::recursive);
  folder.write("other/config.json", "{\"model_type\": \"other\"}");
  fs::create_directory_symlink(folder.path("src"), folder.path("current"));
  const auto lead_to = [&](const char* name) {
    fs::remove(folder.path("current"));
    fs::create_directory_symlink(folder.path(name), folder.path("current"));
  };
  bool away = false;
  bool back = false;
  const ProgressSink sink = [&](std::uint64_t done, std::uint64_t total) {
    if (!std::exchange(away, true)) lead_to("other");
    if (total - done < 1'500'000 && !std::exchange(back, true)) lead_to("src");
  };
  EXPECT_THROW(
      pack_checkpoint(folder.path("current"), folder.path("p"), {CompressionLevel(4), 1}, sink),
      IoError);
  EXPECT_TRUE(back);
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

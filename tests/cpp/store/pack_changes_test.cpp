// Sources that change, or are exchanged, while they are packed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <utility>

#include "packed_files.h"
#include "platform/folder.h"
#include "store/pack.h"
#include "tensorstream/error.h"

namespace tensorstream::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(PackOfChanges, ADiskThatIsTooSmallIsRefusedBeforeAnythingIsWritten) {
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

TEST(PackOfChanges, ASourceThatChangesMeanwhileIsAnError) {
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
TEST(PackOfChanges, AFolderOfWhichAnythingIsExchangedMeanwhileIsAnError) {
  for (const char* name : {"model-1.safetensors", "sub/model-2.safetensors", kShardedIndex}) {
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
TEST(PackOfChanges, AFolderOfWhichNoByteIsAnotherIsPacked) {
  EXPECT_FALSE(is_refused_beside([](const fs::path& source) { replace(source / "config.json"); }));
  EXPECT_FALSE(is_refused_beside([](const fs::path& source) {
    fs::permissions(source / "config.json", fs::perms::owner_read);
  }));
  EXPECT_FALSE(
      is_refused_beside([](const fs::path& source) { std::ofstream(source / "a.log") << "new"; }));
}

/// What is carried along is of the same state as the weights, which were opened before.
TEST(PackOfChanges, AFileThatIsWrittenWhileWeightsArePackedIsAnError) {
  const TemporaryFolder folder;
  write_sharded(folder);
  bool written = false;
  const ProgressSink sink = [&](std::uint64_t done, std::uint64_t total) {
    if (done < total / 2 || std::exchange(written, true)) return;
    folder.write("src/config.json", "{\"model_type\": \"other\"}");
  };
  EXPECT_THROW(
      pack_checkpoint(folder.path("src"), folder.path("p"), {CompressionLevel(4), 1}, sink),
      IoError);
  EXPECT_TRUE(written);
  EXPECT_FALSE(fs::exists(folder.path("p")));
}

/// It is in the other state for a while, of which nothing is read.
TEST(PackOfChanges, AFolderThatIsExchangedAndExchangedBackIsPackedAsItIs) {
  const TemporaryFolder folder;
  write_sharded(folder);
  pack_checkpoint(folder.path("src"), folder.path("undisturbed"), {CompressionLevel(4), 1}, {});
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
    if (done > total / 2 && !std::exchange(away, true)) lead_to("other");
    if (total - done < 1'500'000 && !std::exchange(back, true)) lead_to("src");
  };
  pack_checkpoint(folder.path("current"), folder.path("p"), {CompressionLevel(4), 1}, sink);
  EXPECT_TRUE(away && back);
  EXPECT_TRUE(files_below(folder.path("p")) == files_below(folder.path("undisturbed")));
}

}  // namespace
}  // namespace tensorstream::testing

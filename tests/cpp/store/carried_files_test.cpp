// The files that are packed along: which they are, and what they may be called.
#include "store/carried_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "packed_files.h"
#include "store/pack.h"
#include "tensorstream/error.h"

namespace tensorstream::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

std::vector<std::string> listed(const TemporaryFolder& folder) {
  std::vector<std::string> names;
  for (const CarriedFile& file : list_carried_files(folder.path("src"), {"left.txt"})) {
    names.push_back(file.name);
  }
  return names;
}

TEST(CarriedFiles, AreThoseThatLinksWithinTheFolderLeadTo) {
  const TemporaryFolder folder;
  folder.write("src/real/a.txt", "a");
  folder.write("src/real/deep/b.txt", "b");
  folder.write("src/.hidden/c.txt", "c");
  folder.write("src/left.txt", "");
  fs::create_symlink("real", folder.path("src/linked"));
  fs::create_symlink(".hidden/c.txt", folder.path("src/c.txt"));
  EXPECT_THAT(listed(folder), ElementsAre("c.txt", "linked/a.txt", "linked/deep/b.txt",
                                          "real/a.txt", "real/deep/b.txt"));
}

TEST(CarriedFiles, ComeBackFromLinkedFolders) {
  const TemporaryFolder folder;
  folder.write("src/model.safetensors", mixed_file());
  folder.write("src/real/tokenizer.json", "1");
  fs::create_symlink("real", folder.path("src/tokenizer"));
  pack_checkpoint(folder.path("src"), folder.path("p"), kTwoThreads, {});
  unpack_checkpoint(folder.path("p"), folder.path("u"), 1, {});
  EXPECT_EQ(read_file(folder.path("u/real/tokenizer.json")), "1");
  EXPECT_EQ(read_file(folder.path("u/tokenizer/tokenizer.json")), "1");
}

TEST(CarriedFiles, AreNotThoseOutsideOfTheFolder) {
  for (const char* target : {"../outside", "../outside/x.txt"}) {
    const TemporaryFolder folder;
    folder.write("src/a.txt", "");
    folder.write("outside/x.txt", "");
    fs::create_symlink(target, folder.path("src/link"));
    EXPECT_THAT([&] { listed(folder); },
                ThrowsMessage<FormatError>(AllOf(HasSubstr("src/link"), HasSubstr("outside of"))));
  }
}

TEST(CarriedFiles, ALinkToAFolderThatItIsInIsNamed) {
  for (const char* target : {".", "..", "../below"}) {
    const TemporaryFolder folder;
    folder.write("src/below/a.txt", "");
    fs::create_symlink(target, folder.path("src/below/link"));
    EXPECT_THAT([&] { listed(folder); }, ThrowsMessage<FormatError>(AllOf(
                                             HasSubstr("src/below/link"), HasSubstr("link: "))));
  }
}

TEST(CarriedFiles, ALinkToTheWholeFolderIsNotSaidToLeadOutOfIt) {
  const TemporaryFolder folder;
  folder.write("src/a.txt", "");
  fs::create_symlink(".", folder.path("src/link"));
  EXPECT_THAT([&] { listed(folder); },
              ThrowsMessage<FormatError>(HasSubstr("leads to the folder that it is in")));
}

TEST(CarriedFiles, LinksThatAreEachInTheOthersFolderEnd) {
  const TemporaryFolder folder;
  folder.write("src/a/x.txt", "");
  folder.write("src/b/y.txt", "");
  fs::create_symlink("../b", folder.path("src/a/to_b"));
  fs::create_symlink("../a", folder.path("src/b/to_a"));
  EXPECT_THROW(listed(folder), FormatError);
}

TEST(CarriedFiles, LinksThatDoubleAtEachLevelAreRefused) {
  const TemporaryFolder folder;
  folder.write("src/20/x.txt", "");
  for (int level = 0; level < 20; ++level) {
    const std::string name = "src/" + std::to_string(level);
    fs::create_directories(folder.path(name));
    for (const char* link : {"/l", "/r"}) {
      fs::create_symlink("../" + std::to_string(level + 1), folder.path(name + link));
    }
  }
  EXPECT_THAT([&] { listed(folder); }, ThrowsMessage<UnsupportedError>(HasSubstr("100000 files")));
}

TEST(CarriedFiles, ALinkToNothingIsNamed) {
  const TemporaryFolder folder;
  folder.write("src/a.txt", "");
  fs::create_symlink("nowhere", folder.path("src/link"));
  EXPECT_THAT([&] { listed(folder); },
              ThrowsMessage<IoError>(AllOf(HasSubstr("src/link"), HasSubstr("link to nothing"))));
}

TEST(CarriedFiles, MayHaveTwoDotsInTheirNames) {
  const TemporaryFolder folder;
  folder.write("src/model-v1..2.safetensors", mixed_file());
  folder.write("src/notes..txt", "1");
  folder.write("src/v1...2/..x.md", "2");
  folder.write("src/v1...2/x...md", "3");
  pack_checkpoint(folder.path("src"), folder.path("p"), kTwoThreads, {});
  verify_checkpoint(folder.path("p"), 1, {});
  unpack_checkpoint(folder.path("p"), folder.path("u"), 1, {});
  auto original = files_below(folder.path("src"));
  original.erase("v1...2/..x.md");  // hidden
  EXPECT_EQ(files_below(folder.path("u")), original);
}

struct BadName {
  std::string label;
  std::string name;
  std::string shown;
  std::string why;
};

class NameThatCannotBePacked : public ::testing::TestWithParam<BadName> {};

TEST_P(NameThatCannotBePacked, IsRefusedBeforeAnythingIsWritten) {
  const TemporaryFolder folder;
  folder.write("src/model.safetensors", mixed_file());
  folder.write("src/" + GetParam().name, "1");
  EXPECT_THAT([&] { pack_checkpoint(folder.path("src"), folder.path("p"), kTwoThreads, {}); },
              ThrowsMessage<UnsupportedError>(AllOf(
                  HasSubstr(GetParam().shown), HasSubstr(GetParam().why), HasSubstr("rename"))));
  EXPECT_FALSE(fs::exists(folder.path("p")));
  EXPECT_FALSE(fs::exists(folder.path(".p.tensorstream-partial")));
}

INSTANTIATE_TEST_SUITE_P(
    All, NameThatCannotBePacked,
    ::testing::Values(BadName{"Backslash", "a\\b.txt", "src/a\\b.txt", "backslash"},
                      BadName{"BackslashBelow", "sub/a\\b.txt", "src/sub/a\\b.txt", "backslash"},
                      BadName{"NotUtf8", "b\xFF.txt", "b\\xff.txt", "UTF-8"},
                      BadName{"PackedShard", "packed-model.safetensors", "packed-model.safetensors",
                              "packed format's own"},
                      BadName{"OtherPackedFile", "packed-x.safetensors", "packed-x.safetensors",
                              "packed format's own"}),
    [](const auto& instance) { return instance.param.label; });

}  // namespace
}  // namespace tensorstream::testing

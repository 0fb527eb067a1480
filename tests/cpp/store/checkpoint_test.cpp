// Which files a path means, and what a checkpoint of them holds.
#include "store/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <vector>

#include "store_files.h"
#include "tensorstream/error.h"

namespace tensorstream::testing {
namespace {

using namespace std::string_literals;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using ::testing::ThrowsMessage;

constexpr const char* kIndexName = "model.safetensors.index.json";

const std::string kThreeShardIndex =
    R"({"metadata":{"total_size":9,"nested":[{"a":1},{"a":1.5}]},"weight_map":{)"
    R"("c":"model-3.safetensors","a":"model-1.safetensors","b":"./sub//model-2.safetensors"}})";

void write_three_shards(const TemporaryFolder& folder, const std::string& index_name) {
  folder.write("model-1.safetensors", one_tensor("a", 2));
  folder.write("sub/model-2.safetensors", one_tensor("b", 3));
  folder.write("model-3.safetensors", one_tensor("c", 4));
  folder.write(index_name, kThreeShardIndex);
}

std::vector<std::string> names(const Checkpoint& checkpoint) {
  std::vector<std::string> result;
  for (const auto& [name, tensor] : checkpoint.tensors()) result.push_back(name);
  return result;
}

TEST(CheckpointOpen, OneFileByItsPath) {
  const TemporaryFolder folder;
  const std::string path = folder.write("any.safetensors", one_tensor("w", 5));
  const Checkpoint checkpoint = Checkpoint::open(path);
  EXPECT_THAT(checkpoint.files(), ElementsAre(path));
  ASSERT_THAT(names(checkpoint), ElementsAre("w"));
  EXPECT_EQ(checkpoint.size_bytes(), 5U);
  EXPECT_EQ(checkpoint.tensors().at("w").stored.name, "w");
  EXPECT_EQ(checkpoint.tensors().at("w").file, 0U);
}

TEST(CheckpointOpen, OneFileByItsPathWhateverItsName) {
  const TemporaryFolder folder;
  EXPECT_THAT(names(Checkpoint::open(folder.write("5f0a3c", one_tensor("w", 5)))),
              ElementsAre("w"));
}

TEST(CheckpointOpen, ShardsByTheirIndex) {
  const TemporaryFolder folder;
  write_three_shards(folder, kIndexName);
  for (const std::string& path : {folder.path(), folder.path(kIndexName)}) {
    const Checkpoint checkpoint = Checkpoint::open(path);
    ASSERT_THAT(names(checkpoint), ElementsAre("a", "b", "c"));
    EXPECT_EQ(checkpoint.size_bytes(), 9U);
    const auto file_of = [&](const char* name) {
      return checkpoint.files().at(checkpoint.tensors().at(name).file);
    };
    EXPECT_EQ(checkpoint.files().size(), 3U);
    EXPECT_EQ(file_of("a"), folder.path("model-1.safetensors"));
    EXPECT_EQ(file_of("b"), folder.path("sub/model-2.safetensors"));
    EXPECT_EQ(file_of("c"), folder.path("model-3.safetensors"));
    EXPECT_EQ(checkpoint.tensors().at("c").stored.size_bytes, 4U);
  }
}

/// A model in Hugging Face's cache: the files of a revision, in `below` of it, are links to blobs.
class CachedModel : public ::testing::TestWithParam<std::string> {
 protected:
  CachedModel() {
    folder_.write("models--a/blobs/1111", R"({"weight_map":{"a":"model-1.safetensors"}})");
    folder_.write("models--a/blobs/5f0a3c", one_tensor("a", 2));
    folder_.write("models--b/blobs/5f0a3c", one_tensor("a", 2));
    folder_.write("elsewhere/model.safetensors", one_tensor("a", 2));
    std::filesystem::create_directories(folder_.path(snapshot_));
    link("blobs/1111", kIndexName);
  }
  /// From the model's folder in the cache.
  void link(const std::string& target, const std::string& name) const {
    const std::string up = GetParam().empty() ? "../../" : "../../../";
    std::filesystem::create_symlink(up + target, folder_.path(snapshot_ + "/" + name));
  }
  void expect_refused(const std::string& name) const {
    try {
      static_cast<void>(Checkpoint::open(folder_.path(snapshot_)));
      FAIL() << "opened";
    } catch (const FormatError& error) {
      EXPECT_THAT(error.what(), HasSubstr(name));
      EXPECT_THAT(error.what(), HasSubstr("outside of the checkpoint's folder"));
    }
  }

  const TemporaryFolder folder_;
  const std::string snapshot_ = "models--a/snapshots/0a1b" + GetParam();
};

TEST_P(CachedModel, IsMadeOfLinksToItsBlobs) {
  link("blobs/5f0a3c", "model-1.safetensors");
  EXPECT_THAT(names(Checkpoint::open(folder_.path(snapshot_))), ElementsAre("a"));
}

TEST_P(CachedModel, HasNoLinksToAnywhereElse) {
  link("../models--b/blobs/5f0a3c", "model-1.safetensors");
  expect_refused("model-1.safetensors");
}

TEST_P(CachedModel, HasNoLinksToOtherFolders) {
  link("../elsewhere/model.safetensors", "model-1.safetensors");
  expect_refused("model-1.safetensors");
}

INSTANTIATE_TEST_SUITE_P(Files, CachedModel, ::testing::Values("", "/unet"),
                         [](const auto& instance) {
                           return instance.param.empty() ? "OfTheRevision" : "InASubfolder";
                         });

TEST(CheckpointOpen, LinksWithinTheFolderAreItsFiles) {
  const TemporaryFolder folder;
  folder.write("m/weights/5f0a3c", one_tensor("a", 2));
  std::filesystem::create_symlink("weights/5f0a3c", folder.path("m/model.safetensors"));
  EXPECT_THAT(names(Checkpoint::open(folder.path("m"))), ElementsAre("a"));
  std::filesystem::create_directory_symlink(folder.path("m"), folder.path("other name"));
  EXPECT_THAT(names(Checkpoint::open(folder.path("other name"))), ElementsAre("a"));
}

TEST(CheckpointOpen, LinksOutOfTheFolderAreRefused) {
  const TemporaryFolder folder;
  folder.write("blobs/5f0a3c", one_tensor("a", 2));
  folder.write("m/note", "");
  std::filesystem::create_symlink("../blobs/5f0a3c", folder.path("m/model.safetensors"));
  EXPECT_THROW(Checkpoint::open(folder.path("m")), FormatError);
  EXPECT_THAT(names(Checkpoint::open(folder.path("m/model.safetensors"))), ElementsAre("a"))
      << "whoever names a file means that file";
}

TEST(CheckpointOpen, AFolderThatLeadsOutIsALinkToo) {
  const TemporaryFolder folder;
  folder.write("blobs/model-1.safetensors", one_tensor("a", 2));
  folder.write("m/"s + kIndexName, R"({"weight_map":{"a":"sub/model-1.safetensors"}})");
  std::filesystem::create_directory_symlink("../blobs", folder.path("m/sub"));
  EXPECT_THROW(Checkpoint::open(folder.path("m")), FormatError);
}

TEST(CheckpointOpen, FolderWithTheUsualFile) {
  const TemporaryFolder folder;
  folder.write("model.safetensors", one_tensor("usual", 1));
  folder.write("consolidated.safetensors", one_tensor("other", 1));
  folder.write("pytorch_model.bin", "");
  folder.write("pytorch_model.bin.index.json", "");
  folder.write("config.json", "{}");
  EXPECT_THAT(names(Checkpoint::open(folder.path())), ElementsAre("usual"));
}

TEST(CheckpointOpen, FolderWithAnotherIndex) {
  const TemporaryFolder folder;
  write_three_shards(folder, "diffusion_pytorch_model.safetensors.index.json");
  folder.write("pytorch_model.bin.index.json", "");
  EXPECT_THAT(names(Checkpoint::open(folder.path())), ElementsAre("a", "b", "c"));
}

TEST(CheckpointOpen, FolderWithOneFileOfAnotherName) {
  const TemporaryFolder folder;
  folder.write("diffusion_pytorch_model.safetensors", one_tensor("w", 1));
  folder.write(".hidden.safetensors", "");
  folder.write("below.safetensors/x.txt", "");
  EXPECT_THAT(names(Checkpoint::open(folder.path())), ElementsAre("w"));
}

TEST(CheckpointOpen, FolderOfDiffusersWithAVariantBeside) {
  const TemporaryFolder folder;
  folder.write("diffusion_pytorch_model.safetensors", one_tensor("usual", 1));
  folder.write("diffusion_pytorch_model.fp16.safetensors", one_tensor("variant", 1));
  EXPECT_THAT(names(Checkpoint::open(folder.path())), ElementsAre("usual"));

  const TemporaryFolder sharded;
  write_three_shards(sharded, "diffusion_pytorch_model.safetensors.index.json");
  sharded.write("diffusion_pytorch_model.fp16.safetensors", one_tensor("variant", 1));
  sharded.write("another.safetensors.index.json", "{}");
  EXPECT_THAT(names(Checkpoint::open(sharded.path())), ElementsAre("a", "b", "c"));
}

TEST(CheckpointOpen, FolderOfShardsOfAVariantAlone) {
  const TemporaryFolder folder;
  write_three_shards(folder, "model.safetensors.index.fp16.json");
  EXPECT_THAT(names(Checkpoint::open(folder.path())), ElementsAre("a", "b", "c"));
  folder.write("model.safetensors", one_tensor("usual", 1));
  EXPECT_THAT(names(Checkpoint::open(folder.path())), ElementsAre("usual"));
  std::filesystem::rename(folder.path("model.safetensors"), folder.path("mine.safetensors"));
  EXPECT_THROW(Checkpoint::open(folder.path()), ConfigError) << "either may be meant";
}

TEST(CheckpointOpen, AnIndexWhoseShardsAreGoneIsNoneBesideTheFile) {
  const TemporaryFolder folder;
  write_three_shards(folder, kIndexName);
  folder.write("model.safetensors", one_tensor("saved later", 1));
  EXPECT_THROW(Checkpoint::open(folder.path()), ConfigError);
  for (const char* shard : {"model-1.safetensors", "sub/model-2.safetensors"}) {
    std::filesystem::remove(folder.path(shard));
    EXPECT_THROW(Checkpoint::open(folder.path()), ConfigError);
  }
  std::filesystem::remove(folder.path("model-3.safetensors"));
  EXPECT_THAT(names(Checkpoint::open(folder.path())), ElementsAre("saved later"));
}

struct SeveralCandidates {
  std::string label;
  std::vector<std::string> files;
};

class SeveralCandidatesTest : public ::testing::TestWithParam<SeveralCandidates> {};

TEST_P(SeveralCandidatesTest, AreAllNamed) {
  const TemporaryFolder folder;
  for (const std::string& name : GetParam().files) folder.write(name, one_tensor("w", 1));
  try {
    Checkpoint::open(folder.path());
    FAIL() << "accepted";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("several"));
    EXPECT_THAT(error.what(), HasSubstr(folder.path()));
    for (const std::string& name : GetParam().files) {
      EXPECT_THAT(error.what(), HasSubstr("'" + name + "'"));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, SeveralCandidatesTest,
    ::testing::Values(SeveralCandidates{"IndexAndSingle", {kIndexName, "model.safetensors"}},
                      SeveralCandidates{"Indexes", {"a.index.json", "b.safetensors.index.json"}},
                      SeveralCandidates{
                          "Singles",
                          {"a.safetensors", "b.safetensors", "c.safetensors", "d.safetensors",
                           "e.safetensors", "f.safetensors", "g.safetensors"}}),
    [](const auto& instance) { return instance.param.label; });

class OtherFormatTest : public ::testing::TestWithParam<std::string> {};

TEST_P(OtherFormatTest, IsNamedAndRefusedAsAFolderAndAsAFile) {
  const TemporaryFolder folder;
  const std::string path = folder.write(GetParam(), "bytes");
  folder.write("config.json", "{}");
  const auto refusal = AllOf(HasSubstr(GetParam()), HasSubstr("convert it to safetensors"),
                             Not(HasSubstr("config.json")));
  EXPECT_THAT([&] { Checkpoint::open(folder.path()); }, ThrowsMessage<UnsupportedError>(refusal));
  EXPECT_THAT([&] { Checkpoint::open(path); }, ThrowsMessage<UnsupportedError>(refusal));
}

INSTANTIATE_TEST_SUITE_P(All, OtherFormatTest,
                         ::testing::Values("pytorch_model.bin", "pytorch_model.bin.index.json",
                                           "model.gguf", "model.pt", "model.pth", "model.ckpt",
                                           "tf_model.h5", "flax_model.msgpack", "model.onnx",
                                           "model.npz", "model.ggml"),
                         [](const auto& instance) {
                           return "File" + std::to_string(instance.index);
                         });

TEST(CheckpointOpen, ManyFilesOfAnotherFormatAreCounted) {
  const TemporaryFolder folder;
  for (int i = 0; i < 9; ++i) folder.write("part-" + std::to_string(i) + ".bin", "");
  EXPECT_THAT([&] { Checkpoint::open(folder.path()); },
              ThrowsMessage<UnsupportedError>(
                  AllOf(HasSubstr("'part-4.bin' and 4 more"), Not(HasSubstr("part-5")))));
}

TEST(CheckpointOpen, AnIndexOfAnotherFormatIsUnsupported) {
  const TemporaryFolder folder;
  folder.write(kIndexName, R"({"weight_map":{"a":"pytorch_model-1.bin"}})");
  EXPECT_THAT([&] { Checkpoint::open(folder.path()); },
              ThrowsMessage<UnsupportedError>(AllOf(HasSubstr(kIndexName), HasSubstr("'a'"),
                                                    HasSubstr("'pytorch_model-1.bin'"))));
}

TEST(CheckpointOpen, FolderWithoutAModel) {
  const TemporaryFolder folder;
  const auto refusal = AllOf(HasSubstr("no model"), HasSubstr(folder.path()));
  EXPECT_THAT([&] { Checkpoint::open(folder.path()); }, ThrowsMessage<ConfigError>(refusal));
  folder.write("config.json", "{}");
  EXPECT_THAT([&] { Checkpoint::open(folder.path()); }, ThrowsMessage<ConfigError>(refusal));
}

TEST(CheckpointOpen, AJsonFileThatIsNoIndexIsAFormatError) {
  const TemporaryFolder folder;
  const std::string path = folder.write("config.json", R"({"hidden_size":8})");
  EXPECT_THAT([&] { Checkpoint::open(path); },
              ThrowsMessage<FormatError>(StartsWith(path + ": weight_map: ")));
}

int errno_of_opening(const std::string& path) {
  try {
    Checkpoint::open(path);
  } catch (const IoError& error) {
    EXPECT_EQ(error.path(), path);
    EXPECT_THAT(error.what(), HasSubstr("'" + path + "'"));
    return error.error_number();
  }
  return 0;
}

TEST(CheckpointOpen, APathThatCannotBeExaminedIsAnIoError) {
  const TemporaryFolder folder;
  folder.write("file", "");
  EXPECT_EQ(errno_of_opening(folder.path("nothing")), ENOENT);
  EXPECT_EQ(errno_of_opening(folder.path("file/below")), ENOENT);
  EXPECT_EQ(errno_of_opening(""), ENOENT);
  EXPECT_EQ(errno_of_opening(folder.path(std::string(300, 'x'))), ENAMETOOLONG);
  EXPECT_EQ(errno_of_opening(folder.path(std::string(300, 'x') + ".bin")), ENAMETOOLONG);
}

TEST(CheckpointOpen, APathWithANulIsNotReadUpToIt) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a.safetensors", one_tensor("a", 1)) + "\0x"s;
  EXPECT_THAT([&] { Checkpoint::open(path); }, ThrowsMessage<ConfigError>(HasSubstr("\\x00x")));
}

TEST(CheckpointOpen, ALinkToAMissingFileIsNamed) {
  const TemporaryFolder folder;
  std::filesystem::create_symlink("gone", folder.path("model.safetensors"));
  EXPECT_THAT([&] { Checkpoint::open(folder.path()); },
              ThrowsMessage<IoError>(HasSubstr(folder.path("model.safetensors"))));
}

std::string with_metadata(const std::string& key) {
  return safetensors_bytes(R"({"__metadata__":{"format":"pt",")" + key + R"(":"1","z":""}})", 0);
}

TEST(CheckpointOpen, FilesPackedByANewerTensorStreamAreUnsupported) {
  const TemporaryFolder folder;
  const std::string path = folder.write("p.safetensors", with_metadata("tensorstream.codec"));
  EXPECT_THAT([&] { Checkpoint::open(path); },
              ThrowsMessage<UnsupportedError>(
                  AllOf(HasSubstr(path), HasSubstr("'tensorstream.codec'"), HasSubstr("newer"),
                        HasSubstr("if it is a plain file, remove that key"))));
}

TEST(CheckpointOpen, APlainFileWithAKeyOfThePackedFormatsSaysWhatToRemove) {
  const TemporaryFolder folder;
  const std::string path = folder.write(
      "w.safetensors", safetensors_bytes(R"({"__metadata__":{"tensorstream.version":"7"}})", 0));
  EXPECT_THAT([&] { Checkpoint::open(path); },
              ThrowsMessage<FormatError>(
                  AllOf(HasSubstr(path), HasSubstr("of a plain file remove the keys"))));
}

TEST(CheckpointOpen, OtherMetadataIsNotMistakenForPacking) {
  const TemporaryFolder folder;
  for (const char* key : {"tensorstream", "tensorstreams.x", "x.tensorstream.", "Tensorstream."}) {
    EXPECT_NO_THROW(Checkpoint::open(folder.write("p.safetensors", with_metadata(key)))) << key;
  }
}

}  // namespace
}  // namespace tensorstream::testing

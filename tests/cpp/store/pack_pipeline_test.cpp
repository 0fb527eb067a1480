// Pipelines are packed model by model, and come back byte for byte.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <string>

#include "packed_files.h"
#include "store/checkpoint.h"
#include "store/pack.h"
#include "store/sealed_text.h"
#include "tensorstream/error.h"

namespace tensorstream::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using ::testing::ThrowsMessage;

constexpr const char* kIndex = "p/packed.pipeline.json";

/// Two models, one of two shards whose tensors have the other's names, and files beside them.
class PackedPipeline : public ::testing::Test {
 protected:
  PackedPipeline() {
    write_source("src");
    pack("src", "p");
  }

  void write_source(const std::string& to, unsigned seed = 1) const {
    const std::string shard = file_of({{"w", "BF16", "[300,1000]", weights(300'000, seed)}});
    folder_.write(to + "/unet/diffusion_pytorch_model-1.safetensors", shard);
    folder_.write(to + "/unet/diffusion_pytorch_model-2.safetensors",
                  file_of({{"ids", "I64", "[4]", noise(32)}}));
    folder_.write(to + "/unet/diffusion_pytorch_model.safetensors.index.json",
                  R"({"weight_map":{"w":"diffusion_pytorch_model-1.safetensors",)"
                  R"("ids":"diffusion_pytorch_model-2.safetensors"}})");
    folder_.write(to + "/unet/config.json", "{\"_class_name\": \"é\"}");
    folder_.write(to + "/text_encoder/model.safetensors", mixed_file());
    folder_.write(to + "/text_encoder/config.json", "{}");
    folder_.write(to + "/scheduler/scheduler_config.json", "{\"steps\": 3}");
    folder_.write(to + "/model_index.json",
                  R"({"_class_name":"P","unet":["diffusers","U"],"text_encoder":["x","T"],)"
                  R"("vae":["diffusers","V"],"scheduler":["diffusers","S"],"safety":[null,null]})");
    folder_.write(to + "/loras/a.safetensors", "no part of it");
    folder_.write(to + "/loras/b.safetensors", "");
    folder_.write(to + "/tokenizer/vocab.txt", noise(2'500'000, 4));
  }
  CheckpointSummary pack(const std::string& from, const std::string& to,
                         const ProgressSink& sink = {}) const {
    return pack_checkpoint(folder_.path(from), folder_.path(to), kTwoThreads, sink);
  }
  CheckpointSummary verify(const std::string& what = "p") const {
    return verify_checkpoint(folder_.path(what), 2, {});
  }
  std::map<std::string, std::string> files(const std::string& of) const {
    return files_below(folder_.path(of));
  }
  FormatError refusal() const {
    try {
      verify();
    } catch (const FormatError& error) {
      return error;
    }
    ADD_FAILURE() << "it was taken";
    return {"", "", ""};
  }
  /// The index with `from` in it replaced, and its checksum made anew.
  void forge_index(const std::string& from, const std::string& to) const {
    std::string index = replaced(read_file(folder_.path(kIndex)), from, to);
    close_seal(index, kSealedIndexStart);
    folder_.write(kIndex, index);
  }

  TemporaryFolder folder_;
};

TEST_F(PackedPipeline, ComesBackByteForByte) {
  const CheckpointSummary packed = verify();
  EXPECT_EQ(packed.files, 3U);
  EXPECT_EQ(packed.tensors, 10U);
  EXPECT_LT(packed.stored_bytes, packed.original_bytes);
  EXPECT_THAT(Checkpoint::open(folder_.path("p/unet")).files(), ::testing::SizeIs(2));
  EXPECT_TRUE(Checkpoint::open(folder_.path("p/text_encoder")).packed());
  const CheckpointSummary back = unpack_checkpoint(folder_.path("p"), folder_.path("back"), 2, {});
  EXPECT_EQ(back.tensors, packed.tensors);
  EXPECT_TRUE(files("back") == files("src"));
  // A model of it is a packed checkpoint by itself.
  unpack_checkpoint(folder_.path("p/unet"), folder_.path("one"), 2, {});
  EXPECT_TRUE(files("one") == files("src/unet"));
}

TEST_F(PackedPipeline, TheSinkIsToldOfAllBytes) {
  std::uint64_t last = 0;
  std::uint64_t all = 0;
  const ProgressSink sink = [&](std::uint64_t done, std::uint64_t total) {
    EXPECT_GT(done, last);
    last = done;
    all = total;
  };
  pack("src", "again", sink);
  EXPECT_EQ(last, all);
  last = 0;
  unpack_checkpoint(folder_.path("p"), folder_.path("back"), 2, sink);
  EXPECT_EQ(last, all);
  EXPECT_EQ(all, [&] {
    std::uint64_t sum = 0;
    for (const auto& [name, bytes] : files("src")) sum += bytes.size();
    return sum;
  }());
}

TEST_F(PackedPipeline, EveryBitOfTheIndexAndOfWhatLiesBesideTheModelsCounts) {
  for (const char* name : {kIndex, "p/model_index.json", "p/scheduler/scheduler_config.json"}) {
    const std::string good = read_file(folder_.path(name));
    for (std::size_t bit = 0; bit < 8 * good.size(); ++bit) {
      std::string bad = good;
      bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
      folder_.write(name, bad);
      ASSERT_EQ(refusal().path(), folder_.path(name)) << "bit " << bit;
    }
    folder_.write(name, good);
  }
  verify();
}

TEST_F(PackedPipeline, AModelOfAnotherPackingIsRefused) {
  write_source("other", 7);
  pack("other", "q");
  fs::remove_all(folder_.path("p/unet"));
  fs::copy(folder_.path("q/unet"), folder_.path("p/unet"), fs::copy_options::recursive);
  const FormatError error = refusal();
  EXPECT_EQ(error.path(), folder_.path(kIndex));
  EXPECT_THAT(error.rule(), AllOf(StartsWith("packed model: "), HasSubstr("p/unet")));
  EXPECT_THROW(static_cast<void>(Checkpoint::open(folder_.path("p/unet"))), FormatError);
  EXPECT_THROW(unpack_checkpoint(folder_.path("p"), folder_.path("u"), 2, {}), FormatError);
  EXPECT_FALSE(fs::exists(folder_.path("u")));
  fs::remove_all(folder_.path("p/unet"));
  fs::copy(folder_.path("src/unet"), folder_.path("p/unet"), fs::copy_options::recursive);
  EXPECT_THAT(refusal().rule(), StartsWith("packed model: "));
  fs::remove_all(folder_.path("p/unet"));
  EXPECT_THAT(refusal().rule(), StartsWith("packed model: "));
}

/// A file beside the models is a checkpoint too, and not what is asked for.
TEST_F(PackedPipeline, WithoutItsIndexItIsNoPackedPipeline) {
  folder_.write("p/all_in_one.safetensors", mixed_file());
  fs::remove(folder_.path(kIndex));
  EXPECT_EQ(refusal().path(), folder_.path(kIndex));
  EXPECT_THROW(unpack_checkpoint(folder_.path("p"), folder_.path("u"), 2, {}), FormatError);
  unpack_checkpoint(folder_.path("p/unet"), folder_.path("one"), 2, {});
  EXPECT_TRUE(files("one") == files("src/unet"));
}

TEST_F(PackedPipeline, VerifyOfAPlainOneLooksAtItsModels) {
  EXPECT_EQ(verify("src").tensors, 10U);
  folder_.write("src/unet/diffusion_pytorch_model-1.safetensors", "cut");
  EXPECT_THROW(verify("src"), FormatError);
}

TEST_F(PackedPipeline, AForgedIndexIsRefused) {
  const std::string good = read_file(folder_.path(kIndex));
  for (const auto& [from, to] :
       std::map<std::string, std::string>{{"\"unet\":", "\"../src/unet\":"},
                                          {"\"unet\":", "\"/unet\":"},
                                          {"\"unet\":", "\"unet/deep\":"},
                                          {"scheduler/scheduler_config", "../scheduler_config"},
                                          {"tensorstream.models", "tensorstream.model"},
                                          {"tensorstream.carried", "tensorstream.married"},
                                          {"\"metadata\":{", "\"metadata\":[{"},
                                          {"size_bytes", "size_byte"}}) {
    folder_.write(kIndex, good);
    if (from == "\"metadata\":{") {
      folder_.write(kIndex, replaced(good, from, to));
    } else {
      forge_index(from, to);
    }
    EXPECT_EQ(refusal().path(), folder_.path(kIndex)) << to;
  }
  folder_.write(kIndex, good);
  forge_index("tensorstream.version\":\"1\"", "tensorstream.version\":\"2\"");
  EXPECT_THROW(verify(), UnsupportedError);
  folder_.write(kIndex, good);
  forge_index("}}\n", "}}}\n");
  EXPECT_THAT(refusal().rule(), HasSubstr("not JSON"));
}

TEST_F(PackedPipeline, WhatCannotBePackedIsSaid) {
  const auto pack_from = [&](const std::string& from) {
    return [this, from] { pack(from, "refused"); };
  };
  EXPECT_THAT(pack_from("p"), ThrowsMessage<UnsupportedError>(HasSubstr("is packed already")));
  fs::remove(folder_.path("p/packed.pipeline.json"));  // its models still are
  EXPECT_THAT(pack_from("p"), ThrowsMessage<UnsupportedError>(HasSubstr("is packed already")));
  write_source("named");
  folder_.write("named/packed.pipeline.json", "{}");
  EXPECT_THAT(pack_from("named"), ThrowsMessage<UnsupportedError>(HasSubstr("format's own")));
  write_source("within");
  folder_.write("within/unet/packed.pipeline.json", "{}");
  EXPECT_THAT(pack_from("within"), ThrowsMessage<UnsupportedError>(HasSubstr("format's own")));
  folder_.write("broken/model_index.json", "[");
  EXPECT_THAT(pack_from("broken"), ThrowsMessage<FormatError>(HasSubstr("no JSON object")));
  folder_.write("leading/model_index.json", R"({"../src/unet": ["diffusers", "U"]})");
  EXPECT_THAT(pack_from("leading"), ThrowsMessage<FormatError>(HasSubstr("no folder of a model")));
  folder_.write("bare/model_index.json", "{}");
  folder_.write("bare/unet/diffusion_pytorch_model.bin", "x");
  EXPECT_THAT(pack_from("bare"), ThrowsMessage<ConfigError>(HasSubstr("nothing to pack")));
  write_source("twice");
  folder_.write("twice/vae/a.safetensors", mixed_file());
  folder_.write("twice/vae/b.safetensors", mixed_file());
  EXPECT_THAT(pack_from("twice"), ThrowsMessage<ConfigError>(HasSubstr("several")));
  write_source("elsewhere");
  fs::create_directory_symlink(folder_.path("src/unet"), folder_.path("elsewhere/vae"));
  EXPECT_THAT(pack_from("elsewhere"), ThrowsMessage<FormatError>(HasSubstr("vae")));
  write_source("cut");
  folder_.write("cut/unet/diffusion_pytorch_model-1.safetensors", "cut");
  EXPECT_THROW(pack("cut", "refused"), FormatError);
  EXPECT_FALSE(fs::exists(folder_.path("refused")));
}

TEST_F(PackedPipeline, AnythingThatIsExchangedMeanwhileIsAnError) {
  for (const char* name : {"unet/diffusion_pytorch_model-1.safetensors", "unet/config.json",
                           "text_encoder/config.json", "model_index.json"}) {
    write_source("moving");
    bool moved = false;
    const ProgressSink exchange = [&](std::uint64_t done, std::uint64_t all) {
      // All of this file is read.
      if (moved || done + 2'500'000 < all) return;
      moved = true;
      folder_.write("moving/new", read_file(folder_.path(std::string("src/") + name)) + " ");
      fs::rename(folder_.path("moving/new"), folder_.path(std::string("moving/") + name));
    };
    EXPECT_THROW(pack("moving", "refused", exchange), IoError) << name;
    EXPECT_TRUE(moved);
    EXPECT_FALSE(fs::exists(folder_.path("refused")));
    fs::remove_all(folder_.path("moving"));
  }
}

TEST_F(PackedPipeline, GoesOnWhereAKilledRunStopped) {
  const pid_t child = ::fork();
  if (child == 0) {
    // All is done but to give the folder its name.
    pack("src", "resumed", [](std::uint64_t done, std::uint64_t all) {
      if (done == all) static_cast<void>(::raise(SIGKILL));
    });
    std::_Exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  const fs::path staged = folder_.path(".resumed.tensorstream-partial");
  const fs::path left = staged / "unet/packed-diffusion_pytorch_model-1.safetensors";
  ASSERT_TRUE(fs::exists(left));
  const auto written = fs::last_write_time(left);
  pack("src", "resumed");
  EXPECT_TRUE(files("resumed") == files("p"));
  EXPECT_EQ(fs::last_write_time(
                folder_.path("resumed/unet/packed-diffusion_pytorch_model-1.safetensors")),
            written);
}

}  // namespace
}  // namespace tensorstream::testing

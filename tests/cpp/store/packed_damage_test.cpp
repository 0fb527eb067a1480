// No bit of a packed checkpoint can change unseen, and every rule of PACKED.md is broken here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <random>
#include <set>
#include <string>

#include "made_bytes/rounds.h"
#include "packed_files.h"
#include "store/pack.h"
#include "store/packed_file_reader.h"
#include "store/sealed_text.h"
#include "tensorstream/error.h"

namespace tensorstream::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr const char* kFile = "p/packed-m.safetensors";
constexpr const char* kIndex = "p/packed.safetensors.index.json";

/// A packed folder with a file of all kinds, and one that is carried.
class PackedFolder {
 public:
  explicit PackedFolder(const std::string& tensors = mixed_file()) {
    folder_.write("src/m.safetensors", tensors);
    folder_.write("src/config.json", "{\"a\": 1}");
    pack_checkpoint(folder_.path("src"), folder_.path("p"), kTwoThreads, {});
  }

  std::string path(const std::string& name) const { return folder_.path(name); }
  std::string bytes(const std::string& name) const { return read_file(path(name)); }
  void write(const std::string& name, const std::string& bytes) const {
    folder_.write(name, bytes);
  }

 private:
  TemporaryFolder folder_;
};

/// The error with which `path` is refused; fails where it is not.
FormatError refusal(const std::string& path) {
  try {
    verify_checkpoint(path, 2, {});
  } catch (const FormatError& error) {
    return error;
  }
  ADD_FAILURE() << path << " was taken";
  return {"", "", ""};
}

/// Where the tensors of a packed file lie.
std::map<std::uint64_t, std::string> places(const std::string& path) {
  std::map<std::uint64_t, std::string> found;
  const PackedHeader header = read_packed_header(File::open_for_reading(path));
  for (const PackedTensor& tensor : header.tensors) {
    if (tensor.stored.size_bytes > 0) {
      found.emplace(tensor.stored.offset_bytes, tensor.original.name);
    }
  }
  for (const PackedExtent& extent : header.padding) found.emplace(extent.offset_bytes, extent.name);
  return found;
}

/// The tensor at `offset`; empty in the header.
std::string tensor_at(const std::map<std::uint64_t, std::string>& places, std::uint64_t offset) {
  const auto after = places.upper_bound(offset);
  return after == places.begin() ? "" : std::prev(after)->second;
}

TEST(PackedDamage, EveryFlippedBitIsFoundAndNamed) {
  const PackedFolder packed;
  const auto tensors = places(packed.path(kFile));
  const std::string good = packed.bytes(kFile);
  std::mt19937_64 random(4);
  std::uint64_t named = 0;
  for (int i = 0; i < rounds(1000); ++i) {
    std::string bad = good;
    const std::uint64_t bit = random() % (8 * bad.size());
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    packed.write(kFile, bad);
    const FormatError error = refusal(i % 2 == 0 ? packed.path(kFile) : packed.path("p"));
    EXPECT_EQ(error.path(), packed.path(kFile)) << "bit " << bit;
    const std::string tensor = tensor_at(tensors, bit / 8);
    if (tensor.empty()) continue;
    ++named;
    const bool frames_padding = error.tensor() == "tensorstream.frames." + tensor;
    EXPECT_TRUE(error.tensor() == tensor || frames_padding) << error.what() << " at " << bit;
    EXPECT_THAT(error.rule(),
                ::testing::AnyOf(HasSubstr("chunk"), HasSubstr("frame"), StartsWith("padding: ")));
  }
  EXPECT_GT(named, static_cast<std::uint64_t>(rounds(900)));
}

TEST(PackedDamage, EveryByteOfTheHeaderCounts) {
  const PackedFolder packed;
  const std::string good = packed.bytes(kFile);
  const std::uint64_t data = places(packed.path(kFile)).begin()->first;
  ASSERT_EQ(data % 4096, 0U);
  std::mt19937 random(5);
  for (std::uint64_t at = 0; at < data; ++at) {
    std::string bad = good.substr(0, data);
    bad[at] = static_cast<char>(bad[at] ^ (1 << (random() % 8)));
    // The data alone are not read again.
    packed.write("flipped.safetensors", bad);
    fs::resize_file(packed.path("flipped.safetensors"), good.size());
    const FormatError error = refusal(packed.path("flipped.safetensors"));
    EXPECT_EQ(error.path(), packed.path("flipped.safetensors")) << "byte " << at;
  }
}

TEST(PackedDamage, EveryZeroThatFillsUpCounts) {
  const PackedFolder packed;
  const std::string good = packed.bytes(kFile);
  const PackedHeader header = read_packed_header(File::open_for_reading(packed.path(kFile)));
  std::vector<PackedExtent> zeros = header.padding;
  for (const PackedTensor& tensor : header.tensors) {
    if (!tensor.encoded) continue;
    const std::uint64_t end = tensor.stored.offset_bytes + tensor.stored.size_bytes;
    zeros.push_back({tensor.stored.name, end - 1, 1});
  }
  ASSERT_GE(zeros.size(), 4U);
  for (const PackedExtent& extent : zeros) {
    for (const std::uint64_t at : {std::uint64_t{0}, extent.size_bytes - 1}) {
      std::string bad = good;
      ASSERT_EQ(bad.at(extent.offset_bytes + at), '\0');
      bad[extent.offset_bytes + at] = 1;
      packed.write(kFile, bad);
      const FormatError error = refusal(packed.path("p"));
      EXPECT_EQ(error.tensor(), extent.name);
      EXPECT_THAT(error.rule(), StartsWith("padding: "));
    }
  }
}

TEST(PackedDamage, EveryTruncationIsFound) {
  const PackedFolder packed;
  const std::string good = packed.bytes(kFile);
  std::mt19937_64 random(6);
  for (int i = 0; i < rounds(1000); ++i) {
    packed.write(kFile, good);
    // A tenth within the header.
    const std::uint64_t size = random() % (i % 10 == 0 ? 8192 : good.size());
    fs::resize_file(packed.path(kFile), size);
    EXPECT_EQ(refusal(packed.path("p")).path(), packed.path(kFile)) << size;
  }
  packed.write(kFile, good + '\0');
  EXPECT_EQ(refusal(packed.path("p")).path(), packed.path(kFile));
}

TEST(PackedDamage, EveryBitOfTheIndexAndOfCarriedFilesCounts) {
  const PackedFolder packed;
  for (const char* name : {kIndex, "p/config.json"}) {
    const std::string good = packed.bytes(name);
    for (std::size_t bit = 0; bit < 8 * good.size(); ++bit) {
      std::string bad = good;
      bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
      packed.write(name, bad);
      ASSERT_EQ(refusal(packed.path("p")).path(), packed.path(name)) << "bit " << bit;
    }
    packed.write(name, good);
  }
  EXPECT_NO_THROW(verify_checkpoint(packed.path("p"), 1, {}));
}

TEST(PackedDamage, NothingIsUnpackedFromADamagedFolder) {
  const PackedFolder packed;
  for (const char* name : {kFile, kIndex, "p/config.json"}) {
    const std::string good = packed.bytes(name);
    for (const std::size_t at : {std::size_t{20}, good.size() / 2, good.size() - 1}) {
      if (at >= good.size()) continue;
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 1);
      packed.write(name, bad);
      EXPECT_THROW(unpack_checkpoint(packed.path("p"), packed.path("u"), 2, {}), FormatError);
      EXPECT_FALSE(fs::exists(packed.path("u")));
    }
    packed.write(name, good);
  }
  unpack_checkpoint(packed.path("p"), packed.path("u"), 2, {});
  EXPECT_EQ(files_below(packed.path("u")), files_below(packed.path("src")));
}

TEST(PackedDamage, FramesThatChangePlacesAreFound) {
  // The second frame is the first with other signs: both are as long.
  const std::string first = weights(1 << 20);
  std::string second = first;
  for (std::size_t i = 1; i < second.size(); i += 2)
    second[i] = static_cast<char>(second[i] ^ 0x80);
  const PackedFolder packed(file_of({{"w", "BF16", "[2097152]", first + second}}));
  std::string bytes = packed.bytes(kFile);
  const std::uint64_t begin = places(packed.path(kFile)).begin()->first;
  const std::uint64_t size = bytes.find("TSFR", begin + 4) - begin;
  ASSERT_EQ(bytes.substr(begin + size, 4), "TSFR");
  bytes = bytes.substr(0, begin) + bytes.substr(begin + size, size) + bytes.substr(begin, size) +
          bytes.substr(begin + 2 * size);
  packed.write(kFile, bytes);
  const FormatError error = refusal(packed.path("p"));
  EXPECT_EQ(error.tensor(), "w");
  EXPECT_THAT(error.rule(), StartsWith("packed checksum: frame 0 "));
}

struct Forgery {
  std::string label;
  /// What is replaced in the header, and by what; its checksum is made anew.
  std::vector<std::pair<std::string, std::string>> edits;
  std::string tensor;
  std::string rule;
  std::string detail;
};

std::vector<Forgery> metadata_forgeries() {
  return {
      {"NoDataBytes",
       {{"tensorstream.data_bytes", "tensorstream.data_bytez"}},
       "",
       "packed metadata",
       "'tensorstream.data_bytes' is not there"},
      {"DataBytesNoNumber",
       {{R"(data_bytes":")", R"(data_bytes":"x)"}},
       "",
       "packed metadata",
       "no size"},
      {"NoHeader",
       {{"tensorstream.header", "tensorstream.heading"}},
       "",
       "packed metadata",
       "'tensorstream.header' is not there"},
      {"ChecksumsMissing",
       {{"tensorstream.checksums.big", "tensorstream.checksums.bug"}},
       "",
       "packed metadata",
       "tensorstream.checksums.big"},
      {"ChecksumsFewer",
       {{"tensorstream.checksums.empty\":\"", "tensorstream.checksums.empty\":\"0123456789abcdef"}},
       "empty",
       "packed metadata",
       "one for each chunk"},
      {"ChecksumsNoDigits",
       {{"tensorstream.checksums.empty\":\"", "tensorstream.checksums.empty\":\"0123456789abcdeF"}},
       "empty",
       "packed metadata",
       "one for each chunk"},
  };
}

std::vector<Forgery> tensor_forgeries() {
  const std::string big = "\"tensorstream.frames.big\":{\"dtype\":\"U8\"";
  // The last tensor, of 20000 bytes, loses its last row.
  const std::uint64_t end = 2'400'000 + 12 + 2'400'000 + 32 + 140'000 + 1 + 20'000;
  return {
      {"TensorMissing", {{",\"norm\":{", ",\"norman\":{"}}, "norm", "packed tensor", "not in"},
      {"TensorOfOtherType",
       {{"\"ids\":{\"dtype\":\"I64\"", "\"ids\":{\"dtype\":\"U64\""}},
       "ids",
       "packed tensor",
       "type or shape"},
      {"TensorOfOtherShape",
       {{"\"ids\":{\"dtype\":\"I64\",\"shape\":[4]", "\"ids\":{\"dtype\":\"I64\",\"shape\":[2,2]"}},
       "ids",
       "packed tensor",
       "type or shape"},
      {"FramesOfOtherType",
       {{big, replaced(big, "U8", "I8")}},
       "tensorstream.frames.big",
       "packed tensor",
       "U8"},
      {"TensorUnknown",
       {{"tensorstream.padding.big", "tensorstream.filling.big"}},
       "tensorstream.filling.big",
       "packed tensor",
       "does not name it"},
      {"TensorTwice",
       {{"tensorstream.padding.big", "tensorstream.frames.norm"}},
       "norm",
       "packed tensor",
       "twice"},
      {"NameReserved",
       {{"\\\"norm\\\"", "\\\"tensorstream.n\\\""}},
       "tensorstream.n",
       "packed tensor",
       "own"},
      {"ShorterTensor",
       {{"[100,100]", "[99,100]"},
        {"," + std::to_string(end) + "]", "," + std::to_string(end - 200) + "]"},
        {"data_bytes\":\"" + std::to_string(end), "data_bytes\":\"" + std::to_string(end - 200)}},
       "second",
       "decoded size",
       "frame 0"},
  };
}

std::vector<Forgery> header_forgeries() {
  std::vector<Forgery> all = metadata_forgeries();
  for (const Forgery& one : tensor_forgeries()) all.push_back(one);
  return all;
}

class PackedForgery : public ::testing::TestWithParam<Forgery> {};

TEST_P(PackedForgery, IsRefusedByItsRule) {
  const Forgery& forgery = GetParam();
  const PackedFolder packed;
  const std::string good = packed.bytes(kFile);
  const std::uint64_t data = places(packed.path(kFile)).begin()->first;
  std::string header = good.substr(8, data - 8);
  for (const auto& [from, to] : forgery.edits) header = replaced(header, from, to);
  close_seal(header, kSealedHeaderStart);
  packed.write("forged.safetensors", length_bytes(header.size()) + header + good.substr(data));
  const FormatError error = refusal(packed.path("forged.safetensors"));
  EXPECT_EQ(error.path(), packed.path("forged.safetensors"));
  EXPECT_EQ(error.tensor(), forgery.tensor);
  EXPECT_THAT(error.rule(), HasSubstr(forgery.rule));
  EXPECT_THAT(error.rule(), HasSubstr(forgery.detail));
}

INSTANTIATE_TEST_SUITE_P(All, PackedForgery, ::testing::ValuesIn(header_forgeries()),
                         [](const auto& instance) { return instance.param.label; });

/// Of the index, whose checksum is made anew.
std::vector<Forgery> index_forgeries() {
  const std::string shard = "packed-m.safetensors";
  const auto index_name = [](const std::string& name) {
    return std::pair<std::string, std::string>{
        R"("total_size")",
        R"("tensorstream.index":"{}","tensorstream.index_name":")" + name + R"(","total_size")"};
  };
  return {
      {"NoVersion",
       {{"tensorstream.version", "tensorstream.venison"}},
       "",
       "packed index",
       "tensorstream.version"},
      {"NoCarried",
       {{"tensorstream.carried", "tensorstream.married"}},
       "",
       "packed index",
       "tensorstream.carried"},
      {"CarriedOutside", {{"config.json", "../../src/config.json"}}, "", "packed index", "'..'"},
      {"CarriedAbsolute", {{"config.json", "/etc/passwd"}}, "", "packed index", "absolute"},
      {"CarriedWithoutSize", {{"size_bytes", "size_byte"}}, "", "packed index", "config.json"},
      {"IndexOutside", {index_name("../x.json")}, "", "packed index", "'..'"},
      {"IndexTwice", {index_name("config.json")}, "", "packed index", "two files"},
      {"CarriedTwice", {{"config.json", "m.safetensors"}}, "", "packed index", "two files"},
      {"OtherTensor", {{"\"ids\"", "\"idz\""}}, "idz", "packed index", "differ"},
      {"OtherFile",
       {{"\"norm\":\"" + shard, "\"norm\":\"m.safetensors"}},
       "norm",
       "packed index",
       "no packed file"},
      {"MissingShard",
       {{"\"norm\":\"" + shard, "\"norm\":\"packed-n.safetensors"}},
       "norm",
       "missing shard",
       "packed-n.safetensors"},
  };
}

class PackedIndexForgery : public ::testing::TestWithParam<Forgery> {};

TEST_P(PackedIndexForgery, IsRefusedByItsRule) {
  const Forgery& forgery = GetParam();
  const PackedFolder packed;
  std::string index = packed.bytes(kIndex);
  for (const auto& [from, to] : forgery.edits) index = replaced(index, from, to);
  close_seal(index, kSealedIndexStart);
  packed.write(kIndex, index);
  const FormatError error = refusal(packed.path("p"));
  EXPECT_EQ(error.path(), packed.path(kIndex));
  EXPECT_EQ(error.tensor(), forgery.tensor);
  EXPECT_THAT(error.rule(), HasSubstr(forgery.rule));
  EXPECT_THAT(error.rule(), HasSubstr(forgery.detail));
}

INSTANTIATE_TEST_SUITE_P(All, PackedIndexForgery, ::testing::ValuesIn(index_forgeries()),
                         [](const auto& instance) { return instance.param.label; });

TEST(PackedDamage, AFileOfAnotherPackingIsRefused) {
  const PackedFolder one;
  const PackedFolder other(replaced(mixed_file(), "\"pt\"", "\"tp\""));
  one.write(kFile, other.bytes(kFile));
  const FormatError error = refusal(one.path("p"));
  EXPECT_EQ(error.path(), one.path(kFile));
  EXPECT_THAT(error.rule(), StartsWith("packed shard: "));
}

TEST(PackedDamage, ACarriedFileThatIsGoneOrLongerIsFound) {
  const PackedFolder packed;
  packed.write("p/config.json", packed.bytes("p/config.json") + " ");
  EXPECT_THAT(refusal(packed.path("p")).rule(), StartsWith("carried file: it has 9 bytes"));
  fs::remove(packed.path("p/config.json"));
  EXPECT_THAT(refusal(packed.path("p")).rule(), StartsWith("carried file: it is not there"));
}

TEST(PackedDamage, AnEditedCarriedFileLeavesAWayToTheWeights) {
  const PackedFolder packed;
  packed.write("p/config.json", "{\"a\": 2}");
  const std::string rule = refusal(packed.path("p")).rule();
  EXPECT_THAT(rule, HasSubstr("put it back as it was"));
  EXPECT_THAT(rule, HasSubstr("tensorstream.unpack of a packed-*.safetensors file"));
  EXPECT_THROW(unpack_checkpoint(packed.path("p"), packed.path("u"), 2, {}), FormatError);
  unpack_checkpoint(packed.path(kFile), packed.path("u"), 2, {});
  EXPECT_EQ(packed.bytes("u/m.safetensors"), mixed_file());
}

TEST(PackedVersion, ANewerOneIsUnsupported) {
  const PackedFolder packed;
  const std::string good = packed.bytes(kFile);
  const std::uint64_t data = places(packed.path(kFile)).begin()->first;
  const std::string one = R"(tensorstream.version":"1")";
  const std::string two = R"(tensorstream.version":"2")";
  std::string header = replaced(good.substr(8, data - 8), one, two);
  close_seal(header, kSealedHeaderStart);
  packed.write("new.safetensors", length_bytes(header.size()) + header + good.substr(data));
  EXPECT_THROW(verify_checkpoint(packed.path("new.safetensors"), 1, {}), UnsupportedError);
  std::string index = replaced(packed.bytes(kIndex), one, two);
  close_seal(index, kSealedIndexStart);
  packed.write(kIndex, index);
  EXPECT_THROW(verify_checkpoint(packed.path("p"), 1, {}), UnsupportedError);
}

TEST(PackedDocument, NamesTheRulesThatAreTestedAndNoOthers) {
  std::set<std::string> tested = {"packed header", "packed checksum", "padding",
                                  "packed shard",  "carried file",    "packed model"};
  for (const auto& all : {header_forgeries(), index_forgeries()}) {
    for (const Forgery& forgery : all) tested.insert(forgery.rule);
  }
  // Those of the other formats, by which packed files are refused too.
  for (const char* rule : {"decoded size", "missing shard"}) tested.erase(rule);
  std::set<std::string> documented;
  std::ifstream document(TS_STORE_PACKED_MD);
  ASSERT_TRUE(document) << TS_STORE_PACKED_MD;
  for (std::string line; std::getline(document, line);) {
    if (line.starts_with("- `")) documented.insert(line.substr(3, line.find('`', 3) - 3));
  }
  EXPECT_EQ(documented, tested);
}

}  // namespace
}  // namespace tensorstream::testing

// Every rule of FORMAT.md is broken here, and the error names the file, the tensor and the rule.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "store/checkpoint.h"
#include "store/safetensors.h"
#include "store_files.h"
#include "tensorstream/error.h"

namespace tensorstream::testing {
namespace {

using namespace std::string_literals;
using ::testing::HasSubstr;
using ::testing::StartsWith;

struct BrokenHeader {
  std::string label;
  std::string bytes;
  /// As the error gives it; empty where the file as a whole is at fault.
  std::string tensor;
  std::string rule;
  /// Part of what follows the rule's name.
  std::string detail;
};

/// A file whose one entry, "w", is `entry`, with 4 bytes of data.
std::string with_entry(const std::string& entry) {
  return safetensors_bytes("{\"w\":" + entry + "}", 4);
}

std::string with_fields(const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
  return with_entry(R"({"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" +
                    offsets + "}");
}

std::string with_dtype(const std::string& dtype) { return with_fields(dtype, "[4]", "[0,4]"); }
std::string with_shape(const std::string& shape) { return with_fields(R"("U8")", shape, "[0,4]"); }
std::string with_offsets(const std::string& offsets) {
  return with_fields(R"("U8")", "[4]", offsets);
}

/// U8 tensors at the given offsets, in order called a, b, ...
std::string with_ranges(const std::vector<std::pair<int, int>>& ranges, std::size_t data_bytes) {
  std::string header = "{";
  char name = 'a';
  for (const auto& [begin, end] : ranges) {
    if (header.size() > 1) header += ",";
    header += "\""s + name++ + R"(":{"dtype":"U8","shape":[)" + std::to_string(end - begin) +
              R"(],"data_offsets":[)" + std::to_string(begin) + "," + std::to_string(end) + "]}";
  }
  return safetensors_bytes(header + "}", data_bytes);
}

std::string ones(std::size_t count) {
  std::string text = "[4";
  for (std::size_t i = 1; i < count; ++i) text += ",1";
  return text + "]";
}

const std::string kGood = R"({"dtype":"U8","shape":[4],"data_offsets":[0,4]})";

std::vector<BrokenHeader> broken_framing() {
  return {
      {"EmptyFile", "", "", "file size", "0 bytes"},
      {"SevenBytes", "1234567", "", "file size", "7 bytes"},
      {"LengthZero", length_bytes(0) + "{}", "", "header length", "0"},
      {"LengthOverLimit", length_bytes(100'000'001) + "{}", "", "header length", "over the limit"},
      {"LengthOfAllBits", length_bytes(~0ULL) + "{}", "", "header length", "over the limit"},
      {"LengthInUpperHalf", length_bytes((1ULL << 32U) + 2) + "{}", "", "header length",
       "4294967298 bytes are over the limit"},
      {"LengthAtLimitBeyondFile", length_bytes(100'000'000) + "{}", "", "header length",
       "do not fit in the file's 10"},
      {"LengthOneOverFile", length_bytes(3) + "{}", "", "header length", "3 bytes do not fit"},
      {"LengthOnly", length_bytes(1), "", "header length", "1 bytes do not fit in the file's 8"},
      {"GitLfsPointer", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "",
       "header length", "git lfs pull"},
      {"StartsWithSpace", safetensors_bytes(" {}", 0), "", "header start", "'{'"},
      {"StartsWithByteOrderMark", safetensors_bytes("\xEF\xBB\xBF{}", 0), "", "header start", ""},
      {"IsAnArray", safetensors_bytes("[]", 0), "", "header start", ""},
      {"OnlySpaces", safetensors_bytes("   ", 0), "", "header start", ""},
      {"EndsWithNewline", safetensors_bytes("{}\n", 0), "", "header end", "byte 2"},
      {"EndsWithNul", safetensors_bytes("{}\0\0"s, 0), "", "header end", "byte 3"},
      {"NewlineBeforePadding", safetensors_bytes("{}\n  ", 0), "", "header end", "byte 2"},
      {"TextAfterObject", safetensors_bytes("{} }", 0), "", "json", "byte 3"},
      {"SecondObject", safetensors_bytes("{}{}", 0), "", "json", "byte 2"},
      {"HiddenAfterNul", safetensors_bytes("{}\0{\"w\":1}"s, 0), "", "json", "byte 2"},
      {"Unclosed", safetensors_bytes(R"({"w":{})", 0), "w", "entry", "no dtype"},
      {"UnclosedTop", safetensors_bytes(R"({"__metadata__":{})", 0), "", "json", "byte 18"},
      {"TrailingComma", safetensors_bytes("{\"w\":" + kGood + ",}", 4), "", "json", ""},
      {"Comment", safetensors_bytes("{/**/}", 0), "", "json", "byte 1"},
      {"UnquotedKey", safetensors_bytes("{w:1}", 0), "", "json", "byte 1"},
      {"InvalidUtf8InName", safetensors_bytes("{\"\xC3\x28\":" + kGood + "}", 4), "", "json", ""},
      {"OverlongUtf8", safetensors_bytes("{\"\xC0\xAF\":" + kGood + "}", 4), "", "json", ""},
      {"LoneSurrogate", safetensors_bytes("{\"\\ud800\":" + kGood + "}", 4), "", "json", ""},
      {"InfiniteNumber", with_shape("[1e999]"), "", "json", ""},
  };
}

std::vector<BrokenHeader> broken_entries() {
  const std::string metadata = R"({"__metadata__":)";
  return {
      {"TensorTwice", safetensors_bytes("{\"w\":" + kGood + ",\"w\":" + kGood + "}", 4), "w",
       "duplicate key", "'w' twice"},
      {"TensorTwiceByEscape",
       safetensors_bytes("{\"w\":" + kGood + ",\"\\u0077\":" + kGood + "}", 4), "w",
       "duplicate key", "'w' twice"},
      {"MetadataTwice", safetensors_bytes(R"({"__metadata__":{},"__metadata__":{}})", 0), "",
       "duplicate key", "'__metadata__' twice"},
      {"MetadataKeyTwice", safetensors_bytes(metadata + R"({"k":"1","k":"2"}})", 0), "",
       "duplicate key", "'k' twice"},
      {"DtypeTwice", with_entry(R"({"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]})"),
       "w", "duplicate key", "'dtype' twice"},
      {"ShapeTwice", with_entry(R"({"shape":[4],"dtype":"U8","shape":[4],"data_offsets":[0,4]})"),
       "w", "duplicate key", "'shape' twice"},
      {"OffsetsTwice", with_entry(R"({"data_offsets":[0,4],"data_offsets":[0,4]})"), "w",
       "duplicate key", "'data_offsets' twice"},
      {"NameEmpty", safetensors_bytes("{\"\":" + kGood + "}", 4), "", "tensor name", "empty"},
      {"NameEmptyAfterOther", safetensors_bytes("{\"w\":" + kGood + ",\"\":" + kGood + "}", 4), "",
       "tensor name", "empty"},
      {"NameWithNul", safetensors_bytes("{\"a\\u0000b\":" + kGood + "}", 4), "a\\x00b",
       "tensor name", "NUL"},
      {"EntryNull", with_entry("null"), "w", "entry", "null"},
      {"EntryNumber", with_entry("1"), "w", "entry", "a number"},
      {"EntryString", with_entry(R"("U8")"), "w", "entry", "a string"},
      {"EntryArray", with_entry("[]"), "w", "entry", "an array"},
      {"EntryDeep", with_entry(std::string(1'000'000, '[')), "w", "entry", ""},
      {"EntryEmpty", with_entry("{}"), "w", "entry", "no dtype"},
      {"NoShape", with_entry(R"({"dtype":"U8","data_offsets":[0,4]})"), "w", "entry", "no shape"},
      {"NoOffsets", with_entry(R"({"dtype":"U8","shape":[4]})"), "w", "entry", "no data_offsets"},
      {"FieldsOfTheEntryBefore", safetensors_bytes("{\"v\":" + kGood + ",\"w\":{}}", 4), "w",
       "entry", "no dtype"},
      {"UnknownField",
       with_entry(R"({"dtype":"U8","shape":[4],"data_offsets":[0,4],"strides":[1]})"), "w", "entry",
       "'strides'"},
      {"MetadataNull", safetensors_bytes(metadata + "null}", 0), "", "metadata", "null"},
      {"MetadataArray", safetensors_bytes(metadata + "[]}", 0), "", "metadata", "an array"},
      {"MetadataString", safetensors_bytes(metadata + R"("pt"})", 0), "", "metadata", "a string"},
      {"MetadataNumberValue", safetensors_bytes(metadata + R"({"k":1}})", 0), "", "metadata",
       "'k' is a number"},
      {"MetadataObjectValue", safetensors_bytes(metadata + R"({"k":{}}})", 0), "", "metadata",
       "'k' is an object"},
      {"MetadataArrayValue", safetensors_bytes(metadata + R"({"k":[]}})", 0), "", "metadata",
       "'k' is an array"},
      {"MetadataBooleanValue", safetensors_bytes(metadata + R"({"k":true}})", 0), "", "metadata",
       "'k' is a boolean"},
  };
}

std::vector<BrokenHeader> broken_fields() {
  return {
      {"DtypeUnknown", with_dtype(R"("U7")"), "w", "dtype", "'U7'"},
      {"DtypeLowerCase", with_dtype(R"("u8")"), "w", "dtype", "'u8'"},
      {"DtypeOfTorch", with_dtype(R"("uint8")"), "w", "dtype", "BF16"},
      {"DtypeNotInTorch", with_dtype(R"("F6_E2M3")"), "w", "dtype", "'F6_E2M3'"},
      {"DtypeEmpty", with_dtype(R"("")"), "w", "dtype", "''"},
      {"DtypeNull", with_dtype("null"), "w", "dtype", "null"},
      {"DtypeNumber", with_dtype("8"), "w", "dtype", "a number"},
      {"DtypeArray", with_dtype(R"(["U8"])"), "w", "dtype", "an array"},
      {"DtypeObject", with_dtype("{}"), "w", "dtype", "an object"},
      {"ShapeNumber", with_shape("4"), "w", "shape", "a number"},
      {"ShapeString", with_shape(R"("4")"), "w", "shape", "a string"},
      {"ShapeObject", with_shape("{}"), "w", "shape", "an object"},
      {"ShapeNested", with_shape("[[4]]"), "w", "shape", "an array"},
      {"ShapeOfString", with_shape(R"(["4"])"), "w", "shape", "a string"},
      {"ShapeNegative", with_shape("[-4]"), "w", "shape", "negative"},
      {"ShapeMinusZero", with_shape("[4,-0]"), "w", "shape", "negative"},
      {"ShapeFraction", with_shape("[4.0]"), "w", "shape", "fractional"},
      {"ShapeExponent", with_shape("[4e0]"), "w", "shape", "exponent"},
      {"ShapeBoolean", with_shape("[true]"), "w", "shape", "a boolean"},
      {"ShapeTwoToThe63", with_shape("[9223372036854775808]"), "w", "shape", "2^63"},
      {"ShapeTwoToThe64", with_shape("[18446744073709551616]"), "w", "shape", "2^64"},
      {"ShapeRank65", with_shape(ones(65)), "w", "shape", "64 dimensions"},
      {"ShapeRankHuge", with_shape(ones(1'000'000)), "w", "shape", "64 dimensions"},
      {"ShapeProduct", with_shape("[4294967296,4294967296]"), "w", "shape", "product"},
      {"ShapeProductThenZero", with_shape("[4294967296,4294967296,0]"), "w", "shape", "product"},
      {"BitsOverflow", with_shape("[2305843009213693952]"), "w", "tensor size", "2^64 - 1 bits"},
      {"HalfBytes", with_fields(R"("F4")", "[9]", "[0,4]"), "w", "tensor size", "36 bits"},
      {"HalfByteScalar", with_fields(R"("F4")", "[]", "[0,4]"), "w", "tensor size", "4 bits"},
      {"OffsetsNumber", with_offsets("4"), "w", "data_offsets", "a number"},
      {"OffsetsNull", with_offsets("null"), "w", "data_offsets", "null"},
      {"OffsetsObject", with_offsets("{}"), "w", "data_offsets", "an object"},
      {"OffsetsNone", with_offsets("[]"), "w", "data_offsets", "0 integers"},
      {"OffsetsOne", with_offsets("[4]"), "w", "data_offsets", "1 integers"},
      {"OffsetsThree", with_offsets("[0,4,4]"), "w", "data_offsets", "more than two"},
      {"OffsetsFraction", with_offsets("[0,4.0]"), "w", "data_offsets", "fractional"},
      {"OffsetsNegative", with_offsets("[-4,0]"), "w", "data_offsets", "negative"},
      {"OffsetsString", with_offsets(R"(["0","4"])"), "w", "data_offsets", "a string"},
      {"OffsetsNested", with_offsets("[[0,4]]"), "w", "data_offsets", "an array"},
      {"OffsetsBackwards", with_offsets("[4,0]"), "w", "data_offsets", "end before"},
      {"OffsetsBeyondData", with_offsets("[0,5]"), "w", "data_offsets", "beyond the 4 bytes"},
      {"OffsetsFarBeyond", with_offsets("[0,9223372036854775807]"), "w", "data_offsets", "beyond"},
      {"OffsetsTooFew", with_offsets("[0,3]"), "w", "data_offsets", "is 4"},
      {"OffsetsTooMany", with_shape("[3]"), "w", "data_offsets", "is 3"},
      {"OffsetsOfWiderType", with_fields(R"("F32")", "[4]", "[0,4]"), "w", "data_offsets",
       "[4] of F32 is 16"},
  };
}

std::vector<BrokenHeader> broken_layouts() {
  return {
      {"OverlapByOne", with_ranges({{0, 4}, {3, 8}}, 8), "b", "overlap", "'a', which ends at 4"},
      {"OverlapWhole", with_ranges({{0, 4}, {0, 4}}, 4), "b", "overlap", "'a', which ends at 4"},
      {"OverlapUnordered", with_ranges({{3, 8}, {0, 4}}, 8), "a", "overlap", "'b', which"},
      {"EmptyInsideAnother", with_ranges({{0, 8}, {4, 4}}, 8), "b", "overlap", "'a'"},
      {"GapBetween", with_ranges({{0, 4}, {5, 8}}, 8), "b", "gap", "end at 4"},
      {"GapAtStart", with_ranges({{1, 4}}, 4), "a", "gap", "begin at 1"},
      {"TrailingByte", with_ranges({{0, 4}}, 5), "", "data end", "4 of the 5"},
      {"DataWithoutTensors", safetensors_bytes("{}", 1), "", "data end", "0 of the 1"},
      {"DataTruncated", with_ranges({{0, 4}, {4, 8}}, 7), "b", "data_offsets", "truncated"},
      {"DataAbsent", with_ranges({{0, 4}}, 0), "a", "data_offsets", "truncated"},
  };
}

std::vector<BrokenHeader> broken_headers() {
  std::vector<BrokenHeader> all;
  for (const auto& some : {broken_framing(), broken_entries(), broken_fields(), broken_layouts()}) {
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

class BrokenHeaderTest : public ::testing::TestWithParam<BrokenHeader> {};

TEST_P(BrokenHeaderTest, IsRefusedByItsRule) {
  const BrokenHeader& broken = GetParam();
  const TemporaryFolder folder;
  const std::string path = folder.write("w.safetensors", broken.bytes);
  try {
    read_safetensors_header(path);
    FAIL() << "accepted";
  } catch (const FormatError& error) {
    EXPECT_EQ(error.path(), path);
    EXPECT_EQ(error.tensor(), broken.tensor);
    EXPECT_THAT(error.rule(), StartsWith(broken.rule + ": "));
    EXPECT_THAT(error.rule(), HasSubstr(broken.detail));
    EXPECT_THAT(error.what(), StartsWith(path + ": "));
    EXPECT_LT(std::string(error.what()).size(), 2000U);
  }
}

INSTANTIATE_TEST_SUITE_P(All, BrokenHeaderTest, ::testing::ValuesIn(broken_headers()),
                         [](const auto& instance) { return instance.param.label; });

struct BrokenIndex {
  std::string label;
  std::string index;
  /// The file that the error names, below the folder.
  std::string file;
  std::string tensor;
  std::string rule;
  std::string detail;
};

std::string weight_map(const std::string& entries) { return R"({"weight_map":{)" + entries + "}}"; }
std::string with_shard(const std::string& shard) { return weight_map(R"("a":")" + shard + "\""); }

constexpr const char* kIndexName = "model.safetensors.index.json";

std::vector<BrokenIndex> broken_index_texts() {
  const std::string in = kIndexName;
  const std::string a = R"("a":"a.safetensors")";
  return {
      {"Empty", "", in, "", "json", "byte 0"},
      {"NotJson", "version 1", in, "", "json", "byte 0"},
      {"Truncated", R"({"weight_map":{"a":"a.safe)", in, "", "json", ""},
      {"TrailingText", weight_map(a) + "x", in, "", "json", ""},
      {"HiddenAfterNul", weight_map(a) + "\0x"s, in, "", "json", ""},
      {"InvalidUtf8", weight_map("\"\xFF\":\"a.safetensors\""), in, "", "json", ""},
      {"Array", "[]", in, "", "index", "an array"},
      {"String", R"("weight_map")", in, "", "index", "a string"},
      {"Number", "1", in, "", "index", "a number"},
      {"Null", "null", in, "", "index", "null"},
      {"TooDeep", R"({"metadata":)" + std::string(1'000'000, '['), in, "", "index", "32 levels"},
      {"NoMap", R"({"metadata":{"weight_map":{}}})", in, "", "weight_map", "none"},
      {"EmptyObject", "{}", in, "", "weight_map", "none"},
      {"MapEmpty", weight_map(""), in, "", "weight_map", "no tensor"},
      {"MapArray", R"({"weight_map":[]})", in, "", "weight_map", "an array"},
      {"MapString", R"({"weight_map":"a.safetensors"})", in, "", "weight_map", "a string"},
      {"MapNull", R"({"weight_map":null})", in, "", "weight_map", "null"},
      {"FileNumber", weight_map(R"("a":1)"), in, "a", "weight_map", "a number"},
      {"FileNull", weight_map(R"("a":null)"), in, "a", "weight_map", "null"},
      {"FileObject", weight_map(R"("a":{})"), in, "a", "weight_map", "an object"},
      {"FileArray", weight_map(R"("a":["a.safetensors"])"), in, "a", "weight_map", "an array"},
      {"TensorTwice", weight_map(a + "," + a), in, "", "duplicate key", "'a' twice"},
      {"MapTwice", R"({"weight_map":{},"weight_map":{}})", in, "", "duplicate key", "'weight_map'"},
      {"DeepTwice", R"({"metadata":{"x":[{"k":1,"k":2}]}})", in, "", "duplicate key", "'k'"},
      {"NameEmpty", weight_map(R"("":"a.safetensors")"), in, "", "tensor name", "empty"},
      {"NameWithNul", weight_map(R"("a\u0000":"a.safetensors")"), in, "a\\x00", "tensor name",
       "NUL"},
  };
}

std::vector<BrokenIndex> broken_shards() {
  const std::string in = kIndexName;
  const std::string a = R"("a":"a.safetensors")";
  return {
      {"PathEmpty", with_shard(""), in, "a", "shard path", "empty"},
      {"PathAbsolute", with_shard("/tmp/a.safetensors"), in, "a", "shard path", "absolute"},
      {"PathUp", with_shard("../a.safetensors"), in, "a", "shard path", "'..'"},
      {"PathUpInside", with_shard("x/../../a.safetensors"), in, "a", "shard path", "'..'"},
      {"PathBackslash", with_shard(R"(x\\a.safetensors)"), in, "a", "shard path", "backslash"},
      {"PathNul", with_shard(R"(a.safetensors\u0000.safetensors)"), in, "a", "shard path", "NUL"},
      {"ShardMissing", weight_map(a + R"(,"z":"z.safetensors")"), in, "z", "missing shard",
       "z.safetensors' does not exist; fetch"},
      {"ShardBelowAFile", weight_map(R"("a":"a.safetensors/x.safetensors")"), in, "a",
       "missing shard", "a.safetensors/x.safetensors"},
      {"TensorMissing", weight_map(a + R"(,"c":"a.safetensors")"), in, "c", "missing tensor",
       "'a.safetensors'"},
      {"WrongShard", weight_map(R"("a":"b.safetensors","b":"a.safetensors")"), in, "a",
       "wrong shard", "a.safetensors' holds it"},
      {"TensorUnlisted", weight_map(R"("a":"two.safetensors")"), "two.safetensors", "extra",
       "unlisted tensor", kIndexName},
      {"TensorInTwoShards", weight_map(a + R"(,"extra":"two.safetensors")"), "two.safetensors", "a",
       "duplicate tensor", "a.safetensors"},
      {"ShardBroken", weight_map(R"("a":"broken.safetensors")"), "broken.safetensors", "",
       "file size", "3 bytes"},
  };
}

std::vector<BrokenIndex> broken_indexes() {
  std::vector<BrokenIndex> all = broken_index_texts();
  for (const BrokenIndex& one : broken_shards()) all.push_back(one);
  return all;
}

class BrokenIndexTest : public ::testing::TestWithParam<BrokenIndex> {};

TEST_P(BrokenIndexTest, IsRefusedByItsRule) {
  const BrokenIndex& broken = GetParam();
  const TemporaryFolder folder;
  folder.write("a.safetensors", one_tensor("a", 4));
  folder.write("b.safetensors", one_tensor("b", 4));
  folder.write("two.safetensors",
               safetensors_bytes(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                                 R"("extra":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}})",
                                 6));
  folder.write("broken.safetensors", "123");
  folder.write(kIndexName, broken.index);
  try {
    Checkpoint::open(folder.path());
    FAIL() << "accepted";
  } catch (const FormatError& error) {
    EXPECT_EQ(error.path(), folder.path(broken.file));
    EXPECT_EQ(error.tensor(), broken.tensor);
    EXPECT_THAT(error.rule(), StartsWith(broken.rule + ": "));
    EXPECT_THAT(error.rule(), HasSubstr(broken.detail));
  }
}

INSTANTIATE_TEST_SUITE_P(All, BrokenIndexTest, ::testing::ValuesIn(broken_indexes()),
                         [](const auto& instance) { return instance.param.label; });

constexpr std::uint64_t kLargestIndexBytes = 100'000'000;

TEST(IndexSize, OverTheLimitIsRefusedUnread) {
  const TemporaryFolder folder;
  const std::string path = folder.write(kIndexName, "");
  std::filesystem::resize_file(path, kLargestIndexBytes + 1);
  try {
    Checkpoint::open(path);
    FAIL() << "accepted";
  } catch (const FormatError& error) {
    EXPECT_EQ(error.path(), path);
    EXPECT_THAT(error.rule(), StartsWith("index size: 100000001 bytes"));
  }
}

TEST(FormatDocument, NamesTheRulesThatAreTestedAndNoOthers) {
  std::set<std::string> tested = {"index size"};
  for (const BrokenHeader& broken : broken_headers()) tested.insert(broken.rule);
  for (const BrokenIndex& broken : broken_indexes()) tested.insert(broken.rule);

  std::set<std::string> documented;
  std::ifstream document(TS_STORE_FORMAT_MD);
  ASSERT_TRUE(document) << TS_STORE_FORMAT_MD;
  for (std::string line; std::getline(document, line);) {
    if (!line.starts_with("- `")) continue;
    documented.insert(line.substr(3, line.find('`', 3) - 3));
  }
  EXPECT_EQ(documented, tested);
}

}  // namespace
}  // namespace tensorstream::testing

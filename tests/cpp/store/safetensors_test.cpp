// Files that keep the format's rules: what read_safetensors_header makes of them.
#include "store/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <string>
#include <vector>

#include "store_files.h"
#include "tensorstream/error.h"

namespace tensorstream::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

using Shape = std::vector<std::uint64_t>;

SafetensorsHeader read(const std::string& bytes) {
  const TemporaryFolder folder;
  return read_safetensors_header(folder.write("w.safetensors", bytes));
}

std::vector<std::string> names(const SafetensorsHeader& header) {
  std::vector<std::string> result;
  for (const StoredTensor& tensor : header.tensors) result.push_back(tensor.name);
  return result;
}

TEST(SafetensorsHeader, GivesNameTypeShapeAndPlaceInTheFile) {
  const std::string header = R"({"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})";
  const SafetensorsHeader read_header = read(safetensors_bytes(header, 24));
  ASSERT_EQ(read_header.tensors.size(), 1U);
  const StoredTensor& tensor = read_header.tensors[0];
  EXPECT_EQ(tensor.name, "w");
  EXPECT_EQ(tensor.dtype, Dtype::kF32);
  EXPECT_EQ(tensor.shape, (Shape{2, 3}));
  EXPECT_EQ(tensor.offset_bytes, 8 + header.size());
  EXPECT_EQ(tensor.size_bytes, 24U);
  EXPECT_THAT(read_header.metadata, IsEmpty());
}

struct FileDtype {
  std::string name;
  Dtype dtype;
  std::uint64_t bytes_of_eight;
};

// What safetensors 0.8 writes for each type of torch 2.13 that it can write.
const std::vector<FileDtype> kFileDtypes = {
    {"BOOL", Dtype::kBool, 8},
    {"U8", Dtype::kU8, 8},
    {"I8", Dtype::kI8, 8},
    {"U16", Dtype::kU16, 16},
    {"I16", Dtype::kI16, 16},
    {"U32", Dtype::kU32, 32},
    {"I32", Dtype::kI32, 32},
    {"U64", Dtype::kU64, 64},
    {"I64", Dtype::kI64, 64},
    {"F8_E4M3", Dtype::kF8E4M3, 8},
    {"F8_E5M2", Dtype::kF8E5M2, 8},
    {"F8_E4M3FNUZ", Dtype::kF8E4M3Fnuz, 8},
    {"F8_E5M2FNUZ", Dtype::kF8E5M2Fnuz, 8},
    {"F8_E8M0", Dtype::kF8E8M0, 8},
    {"F4", Dtype::kF4, 4},
    {"F16", Dtype::kF16, 16},
    {"BF16", Dtype::kBf16, 16},
    {"F32", Dtype::kF32, 32},
    {"F64", Dtype::kF64, 64},
    {"C64", Dtype::kC64, 64},
};

TEST(SafetensorsHeader, ReadsEveryType) {
  std::string header = "{";
  std::uint64_t end = 0;
  for (const FileDtype& type : kFileDtypes) {
    const std::uint64_t begin = end;
    end += type.bytes_of_eight;
    if (begin != 0) header += ",";
    header += "\"" + type.name + R"(":{"dtype":")" + type.name +
              R"(","shape":[2,4],"data_offsets":[)" + std::to_string(begin) + "," +
              std::to_string(end) + "]}";
  }
  const SafetensorsHeader all = read(safetensors_bytes(header + "}", end));
  ASSERT_EQ(all.tensors.size(), kFileDtypes.size());
  for (std::size_t i = 0; i < kFileDtypes.size(); ++i) {
    EXPECT_EQ(all.tensors[i].name, kFileDtypes[i].name);
    EXPECT_EQ(all.tensors[i].dtype, kFileDtypes[i].dtype);
    EXPECT_EQ(all.tensors[i].size_bytes, kFileDtypes[i].bytes_of_eight);
  }
}

TEST(SafetensorsHeader, TheTypesReadAreAllOfTheTable) {
  std::size_t rows = 0;
#define TS_COUNT_ROW(id, file_name, torch_name, bits) ++rows;
  TS_DTYPES(TS_COUNT_ROW)
#undef TS_COUNT_ROW
  EXPECT_EQ(rows, kFileDtypes.size());
}

TEST(SafetensorsHeader, TakesScalarsAndEmptyTensors) {
  const SafetensorsHeader header =
      read(safetensors_bytes(R"({"scalar":{"dtype":"F64","shape":[],"data_offsets":[0,8]},)"
                             R"("last":{"dtype":"F32","shape":[0,9223372036854775807],)"
                             R"("data_offsets":[8,8]},)"
                             R"("zeroth":{"dtype":"F4","shape":[3,0],"data_offsets":[0,0]}})",
                             8));
  ASSERT_THAT(names(header), ElementsAre("zeroth", "scalar", "last"));
  EXPECT_THAT(header.tensors[1].shape, IsEmpty());
  EXPECT_EQ(header.tensors[1].size_bytes, 8U);
  EXPECT_EQ(header.tensors[2].size_bytes, 0U);
  EXPECT_EQ(header.tensors[2].shape, (Shape{0, 9223372036854775807U}));
}

TEST(SafetensorsHeader, OrdersTensorsByOffset) {
  const SafetensorsHeader header =
      read(safetensors_bytes(R"({"c":{"data_offsets":[4,6],"shape":[2],"dtype":"U8"},)"
                             R"("a":{"shape":[1],"data_offsets":[6,7],"dtype":"U8"},)"
                             R"("b":{"dtype":"U8","data_offsets":[0,4],"shape":[4]}})",
                             7));
  EXPECT_THAT(names(header), ElementsAre("b", "c", "a"));
}

TEST(SafetensorsHeader, GivesMetadataAndIgnoresPadding) {
  const SafetensorsHeader header =
      read(safetensors_bytes(R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("__metadata__":{"format":"pt","empty":"","":"no key"}}      )",
                             1));
  EXPECT_THAT(names(header), ElementsAre("w"));
  EXPECT_THAT(header.metadata,
              ElementsAre(Pair("", "no key"), Pair("empty", ""), Pair("format", "pt")));
}

TEST(SafetensorsHeader, AllowsWhiteSpaceInsideTheObject) {
  EXPECT_THAT(
      names(read(safetensors_bytes(
          "{\n\t\"w\" : {\"dtype\":\"U8\",\"shape\":[ 1 ],\"data_offsets\":[0, 1]}\r\n}", 1))),
      ElementsAre("w"));
}

TEST(SafetensorsHeader, KeepsNamesAsTheyAreDecoded) {
  const SafetensorsHeader header = read(safetensors_bytes(
      R"({"\u00e9\n.\"weight\"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1));
  EXPECT_THAT(names(header), ElementsAre("\xC3\xA9\n.\"weight\""));
}

TEST(SafetensorsHeader, AFileOfNothingHasNoTensors) {
  EXPECT_THAT(read(safetensors_bytes("{}", 0)).tensors, IsEmpty());
  EXPECT_THAT(read(safetensors_bytes(R"({"__metadata__":{}})", 0)).tensors, IsEmpty());
}

TEST(SafetensorsHeader, TakesSixtyFourDimensions) {
  std::string shape = "[2";
  for (int i = 1; i < 64; ++i) shape += ",1";
  const SafetensorsHeader header = read(safetensors_bytes(
      R"({"w":{"dtype":"U8","shape":)" + shape + R"(],"data_offsets":[0,2]}})", 2));
  EXPECT_EQ(header.tensors.at(0).shape.size(), 64U);
}

TEST(SafetensorsHeader, AnUnreadableFileIsAnIoError) {
  const TemporaryFolder folder;
  try {
    read_safetensors_header(folder.path("none.safetensors"));
    FAIL() << "accepted";
  } catch (const IoError& error) {
    EXPECT_EQ(error.error_number(), ENOENT);
    EXPECT_EQ(error.path(), folder.path("none.safetensors"));
  }
  EXPECT_THROW(read_safetensors_header(folder.path()), IoError);
}

}  // namespace
}  // namespace tensorstream::testing

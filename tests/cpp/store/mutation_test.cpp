// Damaged files and indexes: each either still keeps the rules or is refused by one of our errors.
// Built with sanitizers this also shows that no byte sequence reaches undefined behaviour.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <string_view>

#include "store/checkpoint.h"
#include "store/safetensors.h"
#include "store_files.h"
#include "tensorstream/error.h"

namespace tensorstream::testing {
namespace {

using namespace std::string_view_literals;

constexpr int kRounds = 4000;

/// Changes text a little: flipped bits, bytes of the format put in, removed or doubled pieces.
class Mutator {
 public:
  explicit Mutator(std::uint32_t seed) : random_(seed) {}

  std::string operator()(std::string text) {
    const std::size_t changes = 1 + below(3);
    for (std::size_t i = 0; i < changes && !text.empty(); ++i) change(text);
    return text;
  }

 private:
  std::size_t below(std::size_t end) {
    return std::uniform_int_distribution<std::size_t>(0, end - 1)(random_);
  }

  void change(std::string& text) {
    static constexpr std::string_view kTelling = "{}[]\",:\\0123456789-.eE \nUFtu\0\xFF"sv;
    const std::size_t at = below(text.size());
    const char telling = kTelling[below(kTelling.size())];
    switch (below(7)) {
      case 0:
        text[at] = static_cast<char>(static_cast<unsigned char>(text[at]) ^ (1U << below(8)));
        return;
      case 1:
        text[at] = static_cast<char>(below(256));
        return;
      case 2:
        text[at] = telling;
        return;
      case 3:
        text.insert(at, 1, telling);
        return;
      case 4:
        text.erase(at, 1 + below(8));
        return;
      case 5:
        text.resize(at);
        return;
      default:
        text.insert(below(text.size()), text.substr(at, 1 + below(60)));
    }
  }

  std::mt19937 random_;
};

/// A file of three tensors with metadata, its header 8 * n bytes long.
std::string valid_file() {
  std::string header = R"({"__metadata__":{"format":"pt"},)"
                       R"("b.weight":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
                       R"("a.scalar":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                       R"("c.packed":{"dtype":"F4","shape":[4,2],"data_offsets":[16,20]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return safetensors_bytes(header, 20);
}

/// The rules' consequence that readers rely on: the tensors tile the end of the file.
void expect_tiled(const SafetensorsHeader& header, std::uint64_t file_bytes) {
  std::uint64_t bytes = 0;
  for (const StoredTensor& tensor : header.tensors) bytes += tensor.size_bytes;
  ASSERT_LE(bytes, file_bytes);
  std::uint64_t at = file_bytes - bytes;
  for (const StoredTensor& tensor : header.tensors) {
    ASSERT_EQ(tensor.offset_bytes, at) << tensor.name;
    at += tensor.size_bytes;
  }
}

TEST(Mutation, FilesAreReadRightlyOrRefused) {
  const TemporaryFolder folder;
  const std::string valid = valid_file();
  ASSERT_NO_THROW(read_safetensors_header(folder.write("w.safetensors", valid)));
  Mutator mutate(20'240'601);
  int accepted = 0;
  int refused = 0;
  for (int round = 0; round < kRounds; ++round) {
    const std::string bytes = mutate(valid);
    const std::string path = folder.write("w.safetensors", bytes);
    try {
      const SafetensorsHeader header = read_safetensors_header(path);
      ASSERT_NO_FATAL_FAILURE(expect_tiled(header, bytes.size())) << "round " << round;
      ++accepted;
    } catch (const FormatError& error) {
      ASSERT_EQ(error.path(), path) << "round " << round;
      ++refused;
    }
  }
  // Changes of names and data leave a file valid; most others do not.
  EXPECT_GT(accepted, kRounds / 100);
  EXPECT_GT(refused, kRounds / 2);
}

TEST(Mutation, IndexesAreReadRightlyOrRefused) {
  const TemporaryFolder folder;
  const std::string valid =
      R"({"metadata":{"total_size":9,"list":[1,{"x":null}]},"weight_map":)"
      R"({"a":"one.safetensors","b":"two.safetensors","c":"sub/three.safetensors"}})";
  folder.write("one.safetensors", one_tensor("a", 2));
  folder.write("two.safetensors", one_tensor("b", 3));
  folder.write("sub/three.safetensors", one_tensor("c", 4));
  Mutator mutate(20'240'602);
  int accepted = 0;
  int refused = 0;
  for (int round = 0; round < kRounds; ++round) {
    const std::string path = folder.write("w.index.json", mutate(valid));
    try {
      const Checkpoint checkpoint = Checkpoint::open(path);
      for (const std::string& file : checkpoint.files()) {
        ASSERT_TRUE(std::filesystem::equivalent(file, folder.path("one.safetensors")) ||
                    std::filesystem::equivalent(file, folder.path("two.safetensors")) ||
                    std::filesystem::equivalent(file, folder.path("sub/three.safetensors")))
            << file;
      }
      ++accepted;
    } catch (const FormatError&) {
      ++refused;
    } catch (const UnsupportedError&) {
      // The name of a shard no longer ends in .safetensors.
      ++refused;
    }
  }
  EXPECT_GT(accepted, kRounds / 100);
  EXPECT_GT(refused, kRounds / 2);
}

}  // namespace
}  // namespace tensorstream::testing

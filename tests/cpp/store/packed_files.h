// Checkpoints that are packed in tests, and what is in their files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "made_bytes/text_of_bytes.h"
#include "store/pack.h"
#include "store_files.h"

namespace tensorstream::testing {

inline const PackOptions kTwoThreads{CompressionLevel(CompressionLevel::kBalanced), 2};

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text(std::filesystem::file_size(path), '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  return text;
}

/// The files below a folder and their bytes, by their paths below it.
inline std::map<std::string, std::string> files_below(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_directory()) continue;
    files.emplace(entry.path().lexically_relative(folder).string(), read_file(entry.path()));
  }
  return files;
}

/// `text` with the first place where `from` stands made `to`.
inline std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  if (at == std::string::npos) throw std::logic_error("no " + from);
  return text.replace(at, from.size(), to);
}

struct NamedBytes {
  std::string name;
  std::string dtype;
  std::string shape;
  std::string bytes;
};

/// A file of these tensors, one behind the other, with spaces behind its header.
inline std::string file_of(const std::vector<NamedBytes>& tensors) {
  std::string header = R"({"__metadata__":{"format":"pt","of \"it\"":"\\ \u00e9"})";
  std::string data;
  for (const NamedBytes& tensor : tensors) {
    header += ",\"" + tensor.name + R"(":{"shape":)" + tensor.shape + R"(,"dtype":")" +
              tensor.dtype + R"(","data_offsets":[)" + std::to_string(data.size()) + "," +
              std::to_string(data.size() + tensor.bytes.size()) + "]}";
    data += tensor.bytes;
  }
  header += "}   ";
  return length_bytes(header.size()) + header + data;
}

/// Encoded tensors, tensors as they were and padding: a file of all kinds.
inline std::string mixed_file() {
  return file_of({{"norm", "F32", "[3]", noise(12)},
                  {"big", "BF16", "[1200,1000]", weights(1'200'000)},
                  {"ids", "I64", "[4]", noise(32)},
                  {"empty", "F16", "[0,7]", ""},
                  {"noise", "BF16", "[70000]", noise(140'000)},
                  {"long", "I32", "[600000]", noise(2'400'000)},
                  {"scalar", "U8", "[]", noise(1)},
                  {"second", "BF16", "[100,100]", weights(10'000, 3)}});
}

inline constexpr const char* kShardedIndex = "model.safetensors.index.json";

/// Two shards, one in a folder, with an index, and files to carry along.
inline void write_sharded(const TemporaryFolder& folder) {
  folder.write("src/model-1.safetensors", mixed_file());
  folder.write("src/sub/model-2.safetensors",
               file_of({{"head", "F16", "[40000]", noise(80'000)},
                        {"last", "BF16", "[300,100]", weights(30'000, 9)}}));
  std::string map;
  for (const char* name : {"norm", "big", "ids", "empty", "noise", "long", "scalar", "second"}) {
    map += std::string("\"") + name + R"(": "model-1.safetensors",)";
  }
  folder.write(std::string("src/") + kShardedIndex,
               R"({"metadata": {"total_size": 7, "é": [1.5]}, "weight_map": {)" + map +
                   R"("head":"sub/model-2.safetensors", "last":"sub/model-2.safetensors"}})"
                   "\n");
  folder.write("src/config.json", "{\"model_type\": \"é\"}");
  folder.write("src/tokenizer/vocab.txt", noise(3'000'000, 4));
  folder.write("src/empty.txt", "");
  folder.write("src/.cache/left.lock", "out");
  folder.write("src/.gitattributes", "out");
}

}  // namespace tensorstream::testing

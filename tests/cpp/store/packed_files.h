// Checkpoints that are packed in tests, and what is in their files.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "store/pack.h"
#include "store_files.h"

namespace tensorstream::testing {

inline const PackOptions kTwoThreads{CompressionLevel(CompressionLevel::kBalanced), 2};

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
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

/// Little-endian bf16 of weights that pay to be encoded.
inline std::string weights(std::size_t count, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 0.02F);
  std::string bytes;
  bytes.reserve(count * 2);
  for (std::size_t i = 0; i < count; ++i) {
    const float value = normal(random);
    std::uint32_t bits = 0;
    static_assert(sizeof bits == sizeof value);
    std::memcpy(&bits, &value, sizeof bits);
    bytes += static_cast<char>((bits >> 16U) & 0xFFU);
    bytes += static_cast<char>(bits >> 24U);
  }
  return bytes;
}

/// Bytes that no code makes fewer.
inline std::string noise(std::size_t count, unsigned seed = 2) {
  std::mt19937 random(seed);
  std::string bytes;
  bytes.reserve(count);
  for (std::size_t i = 0; i < count; ++i) bytes += static_cast<char>(random());
  return bytes;
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

}  // namespace tensorstream::testing

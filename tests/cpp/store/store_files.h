// Files that the store's tests write, byte by byte, in a folder of their own.
#pragma once

#include <stdlib.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace tensorstream::testing {

/// A new folder, removed with all it holds.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "ts_store_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed: " + name);
    path_ = name;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  std::string path() const { return path_.string(); }
  std::string path(std::string_view name) const { return (path_ / name).string(); }

  /// Writes a file below the folder, its parents too, and gives its path.
  std::string write(std::string_view name, std::string_view bytes) const {
    const std::filesystem::path file = path_ / name;
    std::filesystem::create_directories(file.parent_path());
    // Some file systems write a file that was truncated to disk before it is closed.
    std::filesystem::remove(file);
    std::ofstream out(file, std::ios::binary);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    out.close();
    if (!out) throw std::runtime_error("cannot write " + file.string());
    return file.string();
  }

 private:
  std::filesystem::path path_;
};

/// `value` as 8 little-endian bytes.
inline std::string length_bytes(std::uint64_t value) {
  std::string bytes;
  for (unsigned i = 0; i < 8; ++i) bytes += static_cast<char>((value >> (8 * i)) & 0xFFU);
  return bytes;
}

/// A file of the format: the header's length, the header as given, `data_bytes` of data.
inline std::string safetensors_bytes(std::string_view header, std::size_t data_bytes) {
  std::string bytes = length_bytes(header.size());
  bytes += header;
  for (std::size_t i = 0; i < data_bytes; ++i) bytes += static_cast<char>('A' + i % 26);
  return bytes;
}

/// A file with one U8 tensor of `size_bytes`, called `name`.
inline std::string one_tensor(std::string_view name, std::size_t size_bytes) {
  const std::string size = std::to_string(size_bytes);
  return safetensors_bytes("{\"" + std::string(name) + R"(":{"dtype":"U8","shape":[)" + size +
                               R"(],"data_offsets":[0,)" + size + "]}}",
                           size_bytes);
}

}  // namespace tensorstream::testing

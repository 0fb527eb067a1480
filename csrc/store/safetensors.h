// The header of a safetensors file. The reader trusts nothing: FORMAT.md lists the rules that a
// file must keep.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "platform/file.h"
#include "tensorstream/dtype.h"

namespace tensorstream {

/// One tensor of a file: C-contiguous little-endian elements at [offset_bytes, offset_bytes +
/// size_bytes) of the file.
struct StoredTensor {
  std::string name;
  Dtype dtype = Dtype::kU8;
  std::vector<std::uint64_t> shape;
  std::uint64_t offset_bytes = 0;
  std::uint64_t size_bytes = 0;
};

struct SafetensorsHeader {
  /// In the order of their offsets.
  std::vector<StoredTensor> tensors;
  /// The file's `__metadata__`.
  std::map<std::string, std::string> metadata;
  /// Of the file whose header it is, where it was read.
  FileIdentity file;
};

/// The bytes of the header's length, before the header.
inline constexpr std::uint64_t kHeaderLengthBytes = 8;
inline constexpr std::uint64_t kLargestHeaderBytes = 100'000'000;

/// A header as it stands in a file, the spaces that fill it up included.
struct HeaderText {
  std::string text;
  /// What follows it.
  std::uint64_t data_bytes = 0;
};

/// The header of `file`, of which only the length is checked. Raises IoError and FormatError.
HeaderText read_header_text(const File& file);

/// Checks a header of the file at `path`, which may be one that the file only tells of. Raises
/// FormatError.
SafetensorsHeader parse_header(const std::string& path, const HeaderText& header);

/// Reads and checks the header of the file at `path`. Raises IoError where it cannot be read and
/// FormatError (file, tensor, rule) where it breaks a rule.
SafetensorsHeader read_safetensors_header(const std::string& path);

}  // namespace tensorstream

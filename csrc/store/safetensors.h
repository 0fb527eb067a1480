// The header of a safetensors file. The reader trusts nothing: FORMAT.md lists the rules that a
// file must keep.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

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
};

/// Reads and checks the header of the file at `path`. Raises IoError where it cannot be read and
/// FormatError (file, tensor, rule) where it breaks a rule.
SafetensorsHeader read_safetensors_header(const std::string& path);

}  // namespace tensorstream

// The index of a checkpoint in several files: which tensor is in which file.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

namespace tensorstream {

inline constexpr std::uint64_t kLargestIndexBytes = 100'000'000;

/// By tensor name, the shard that holds it: a relative path below the index's folder, in its
/// shortest spelling.
using ShardIndex = std::map<std::string, std::string, std::less<>>;

/// Reads and checks the index at `path`. Raises IoError where it cannot be read, FormatError where
/// it breaks a rule of FORMAT.md, and UnsupportedError where its shards are not safetensors.
ShardIndex read_shard_index(const std::string& path);

}  // namespace tensorstream

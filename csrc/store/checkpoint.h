// A checkpoint: safetensors files, one or several with an index, seen as named tensors.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "store/safetensors.h"

namespace tensorstream {

struct PackedShard;

struct CheckpointTensor {
  StoredTensor stored;
  /// Index into Checkpoint::files().
  std::uint32_t file = 0;
};

/// The tensors of one checkpoint. Immutable once open; thread-safe.
class Checkpoint {
 public:
  /// Opens `path`: a .safetensors file, an index (.json) of several, or a folder that holds one of
  /// `model.safetensors.index.json` and `model.safetensors`, or of the same with diffusers' name
  /// `diffusion_pytorch_model`, else a single *.index.json, else a single *.safetensors. A
  /// `model.safetensors.index.json` whose shards are gone is none beside `model.safetensors`. Every
  /// header is checked, and the index against the headers. A folder's files may be links within it,
  /// and those of a snapshot in Hugging Face's cache links to the cache's blobs; others are
  /// FormatErrors. Raises IoError; FormatError; ConfigError for a folder that holds several
  /// candidates, or plain weights beside packed ones (naming all), or no model; UnsupportedError
  /// for a folder that holds other formats (naming what it holds). Of a packed checkpoint the
  /// headers are checked likewise, and the tensors are those that were packed.
  static Checkpoint open(const std::string& path);

  /// Whether offsets are those of files that were packed: such a file has to be read as one.
  bool packed() const noexcept { return packed_; }
  const std::vector<std::string>& files() const noexcept { return files_; }
  /// Of these files, when their headers were read: offsets are those of files in that state.
  const std::vector<FileIdentity>& identities() const noexcept { return identities_; }
  /// By name.
  const std::map<std::string, CheckpointTensor, std::less<>>& tensors() const noexcept {
    return tensors_;
  }
  /// Sum of the tensors' sizes.
  std::uint64_t size_bytes() const noexcept { return size_bytes_; }

 private:
  void add_file(const std::string& path);
  void add_shards(const std::string& index_path);
  void add_packed(const PackedShard& shard);
  void add_tensor(StoredTensor tensor);

  bool packed_ = false;
  std::vector<std::string> files_;
  std::vector<FileIdentity> identities_;
  std::map<std::string, CheckpointTensor, std::less<>> tensors_;
  std::uint64_t size_bytes_ = 0;
};

/// What a model says of one of its tensors.
struct WantedTensor {
  /// Every name the model has for it: several where it is tied.
  std::vector<std::string> names;
  Dtype dtype = Dtype::kU8;
  /// As torch gives it: the last dimension of a float4_e2m1fn_x2 counts pairs, and is doubled in
  /// files.
  std::vector<std::uint64_t> shape;
};

/// The shape that torch gives a stored tensor: the reverse of what WantedTensor says.
std::vector<std::uint64_t> torch_shape(const StoredTensor& stored);

/// For each of `wanted`, the tensor of `checkpoint` that holds it, valid as long as `checkpoint`
/// is. Names are tried as they are, and where one is missing, all of them with one prefix of up to
/// four parts ("model.", "bert.", ...) added or removed. A tied tensor is found under any of its
/// names; where the checkpoint has several of them, their bytes are read and compared. Raises
/// ConfigError naming the first few tensors that are missing, of another shape or of another type,
/// with both sides, where two prefixes would do equally well with different weights, and where
/// names of one tensor have different values; IoError; FormatError.
std::vector<const CheckpointTensor*> match_tensors(const Checkpoint& checkpoint,
                                                   std::span<const WantedTensor> wanted);

}  // namespace tensorstream

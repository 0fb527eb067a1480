#include "store/same_value.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/units.h"
#include "platform/file.h"
#include "store/packed_file.h"
#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// As large as a chunk of what is packed, so that each is decoded once.
constexpr std::uint64_t kPieceBytes = 2_MiB;

/// The bytes of one tensor, whether its file is packed or plain.
class TensorBytes {
 public:
  TensorBytes(const Checkpoint& checkpoint, const CheckpointTensor& tensor)
      : stored_(tensor.stored) {
    const std::string& path = checkpoint.files().at(tensor.file);
    if (checkpoint.packed()) {
      packed_.emplace(path);
    } else {
      plain_.emplace(File::open_for_reading(path));
    }
  }

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) const {
    const std::uint64_t offset = stored_.offset_bytes + offset_bytes;
    if (packed_) {
      packed_->read(offset, out);
    } else {
      plain_->read_exact(offset, out);
    }
  }

 private:
  const StoredTensor& stored_;
  std::optional<File> plain_;
  std::optional<PackedFile> packed_;
};

bool is_same(const Checkpoint& checkpoint, const CheckpointTensor& one,
             const CheckpointTensor& other) {
  const std::uint64_t size_bytes = one.stored.size_bytes;
  if (one.stored.dtype != other.stored.dtype || one.stored.shape != other.stored.shape ||
      other.stored.size_bytes != size_bytes) {
    return false;
  }
  const TensorBytes first(checkpoint, one);
  const TensorBytes second(checkpoint, other);
  std::vector<std::byte> of_one(std::min(kPieceBytes, size_bytes));
  std::vector<std::byte> of_other(of_one.size());
  for (std::uint64_t offset = 0; offset < size_bytes; offset += of_one.size()) {
    of_one.resize(std::min<std::uint64_t>(of_one.size(), size_bytes - offset));
    of_other.resize(of_one.size());
    first.read(offset, of_one);
    second.read(offset, of_other);
    if (of_one != of_other) return false;
  }
  return true;
}

}  // namespace

void check_same_value(const Checkpoint& checkpoint,
                      std::span<const CheckpointTensor* const> tensors) {
  for (const CheckpointTensor* const other : tensors) {
    const CheckpointTensor& one = *tensors.front();
    if (&one == other || is_same(checkpoint, one, *other)) continue;
    throw ConfigError("'" + shown(one.stored.name) + "' and '" + shown(other->stored.name) +
                      "' are one weight of the model, but differ in the checkpoint '" +
                      checkpoint.files().at(one.file) +
                      "'; untie them in the model, or give a checkpoint that holds only the one "
                      "that is meant");
  }
}

}  // namespace tensorstream

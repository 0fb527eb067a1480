// A model whose weights are in a packed file.
#pragma once

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "engine/packed_reader.h"
#include "engine/test_model.h"
#include "io/file_opener.h"
#include "platform/temporary_folder.h"
#include "store/pack.h"
#include "store/packed_header.h"

namespace tensorstream {

inline constexpr std::uint32_t kPackedLevel = 7;

/// Tensors of several frames, of one, of none that pays, and empty ones.
inline TestModel packed_model() {
  TestModel model(11);
  model.add_typed_group({{Dtype::kBf16, 1'500'000}, {Dtype::kF32, 700'003}, {Dtype::kU8, 0}});
  model.add_typed_group({{Dtype::kF16, 90'000}, {Dtype::kI8, 333}, {Dtype::kI8, 2'200'000}});
  model.add_typed_group({{Dtype::kBf16, 80'000}, {Dtype::kF8E4M3, 600'001}, {Dtype::kBool, 17}});
  model.add_typed_group({{Dtype::kBf16, 1'048'576}, {Dtype::kBf16, 1'048'577}});
  return model;
}

/// The model's weights in a packed file.
class PackedModel {
 public:
  explicit PackedModel(TestModel of = packed_model()) : model(std::move(of)) {
    model.write_safetensors(folder_, "m.safetensors");
    pack_checkpoint(folder_.path("m.safetensors"), folder_.path("p"),
                    {CompressionLevel(kPackedLevel), 2}, {});
  }

  std::string path() const { return folder_.path("p/packed-m.safetensors"); }
  ModelSpec spec(FileBackend backend = FileBackend::kPread) const {
    return spec(std::shared_ptr<Reader>(open_packed_reader(path(), FileOpener(backend))));
  }
  ModelSpec spec(const std::shared_ptr<Reader>& reader) const {
    ModelSpec made = model.in_safetensors(reader);
    for (TensorSpec& tensor : made.tensors) {
      tensor.frame_bytes = reader->frame_bytes(tensor.extents[0].offset_bytes, tensor.size_bytes);
    }
    return made;
  }
  /// Flips a bit in the middle of a tensor.
  void damage(TensorId tensor) const {
    const PackedHeader header = read_packed_header(File::open_for_reading(path()));
    for (const PackedTensor& one : header.tensors) {
      if (one.original.name != model.name(tensor)) continue;
      std::fstream file(path(), std::ios::in | std::ios::out | std::ios::binary);
      const auto at =
          static_cast<std::streamoff>(one.stored.offset_bytes + one.stored.size_bytes / 2);
      file.seekg(at);
      const int byte = file.get();
      file.seekp(at);
      file.put(static_cast<char>(byte ^ 4));
    }
  }

  const TestModel model;

 private:
  const TemporaryFolder folder_;
};

}  // namespace tensorstream

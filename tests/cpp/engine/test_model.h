// A model of random bytes, and the truth about them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/units.h"
#include "codec/element_layout.h"
#include "engine/group_layout.h"
#include "io/file_opener.h"
#include "io/reader.h"
#include "made_bytes/weights.h"
#include "platform/temporary_folder.h"
#include "scheduler/planner.h"
#include "tensorstream/engine.h"

namespace tensorstream {

inline std::shared_ptr<Reader> memory_reader(const std::string& name,
                                             const std::shared_ptr<const Bytes>& bytes) {
  return create_memory_reader(name, *bytes, bytes);
}

/// A tensor of so many Gaussian weights of a type; of random bytes, where the type is none of a
/// float.
struct TypedTensor {
  Dtype dtype = Dtype::kU8;
  std::uint64_t count = 0;
};

/// Tensors of random bytes in groups. Tensors are numbered in the order in which they are added.
class TestModel {
 public:
  explicit TestModel(std::uint64_t seed = 1) : random_(seed) {}

  GroupId add_group(const std::vector<std::uint64_t>& tensor_sizes,
                    Residency residency = Residency::kAny) {
    const GroupId group = add_empty_group(residency);
    for (const std::uint64_t size : tensor_sizes) {
      add_tensor(Dtype::kU8, random_bytes(size, random_));
    }
    return group;
  }
  /// Weights that no level makes shorter, whatever their type.
  GroupId add_random_group(Dtype dtype, std::uint64_t size_bytes) {
    const GroupId group = add_empty_group(Residency::kAny);
    add_tensor(dtype, random_bytes(size_bytes, random_));
    return group;
  }
  GroupId add_typed_group(const std::vector<TypedTensor>& tensors,
                          Residency residency = Residency::kAny) {
    const GroupId group = add_empty_group(residency);
    for (const TypedTensor& tensor : tensors) {
      const bool coded = layout_of(tensor.dtype).has_value();
      add_tensor(tensor.dtype,
                 coded ? gaussian_weights(tensor.dtype, tensor.count,
                                          dtype_bits(tensor.dtype) == 8 ? 1 : 0.02, random_())
                       : random_bytes(tensor.count * dtype_bits(tensor.dtype) / 8, random_));
    }
    return group;
  }

  std::size_t group_count() const { return groups_.size(); }
  const std::vector<Group>& groups() const { return groups_; }
  std::size_t tensor_count() const { return bytes_.size(); }
  const std::string& name(TensorId tensor) const { return names_.at(tensor); }
  /// What the tensor holds now; checks that are queued keep what it held then.
  std::shared_ptr<const Bytes> bytes(TensorId tensor) const { return bytes_.at(tensor); }
  std::uint64_t size_bytes(GroupId group) const {
    std::uint64_t size = 0;
    for (const TensorId tensor : groups_.at(group).tensors) size += bytes_.at(tensor)->size();
    return size;
  }

  /// Gives the tensor new random bytes; the engine learns of them by replace_tensor().
  std::shared_ptr<const Bytes> change(TensorId tensor) {
    auto& bytes = bytes_.at(tensor);
    bytes = std::make_shared<const Bytes>(random_bytes(bytes->size(), random_));
    return bytes;
  }

  /// Every tensor in host memory: source i is tensor i.
  ModelSpec in_memory() const {
    ModelSpec model = without_sources();
    for (TensorId id = 0; id < bytes_.size(); ++id) {
      model.sources.push_back(memory_reader("memory of '" + names_[id] + "'", bytes_[id]));
      model.tensors[id].extents = {{id, 0, bytes_[id]->size()}};
    }
    return model;
  }

  /// Every tensor in a file of its own: source i is tensor i.
  ModelSpec in_files(const TemporaryFolder& folder) const {
    ModelSpec model = without_sources();
    for (TensorId id = 0; id < bytes_.size(); ++id) {
      const std::string path = folder.write("tensor_" + std::to_string(id), *bytes_[id]);
      model.sources.push_back(open_file_reader(path, FileBackend::kPread));
      model.tensors[id].extents = {{id, 0, bytes_[id]->size()}};
    }
    return model;
  }

  /// Every tensor in one safetensors file, in their order; source 0 is whatever reads it.
  std::string write_safetensors(const TemporaryFolder& folder, const std::string& name) const {
    std::string header = "{";
    std::uint64_t end = 0;
    for (TensorId id = 0; id < bytes_.size(); ++id) {
      const std::uint64_t begin = std::exchange(end, end + bytes_[id]->size());
      const std::uint64_t count = bytes_[id]->size() * 8 / dtype_bits(dtypes_[id]);
      header += (id == 0 ? "\"" : ",\"") + names_[id] + R"(":{"dtype":")" +
                std::string(dtype_file_name(dtypes_[id])) + R"(","shape":[)" +
                std::to_string(count) + R"(],"data_offsets":[)" + std::to_string(begin) + "," +
                std::to_string(end) + "]}";
    }
    header += "}";
    Bytes file(8);
    for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<std::byte>(header.size() >> (8 * i));
    for (const char letter : header) file.push_back(static_cast<std::byte>(letter));
    for (const auto& bytes : bytes_) file.insert(file.end(), bytes->begin(), bytes->end());
    return folder.write(name, file);
  }
  /// Every tensor where that file has it, read by `reader`.
  ModelSpec in_safetensors(std::shared_ptr<Reader> reader) const {
    ModelSpec model = without_sources();
    std::uint64_t offset = reader->size_bytes();
    for (const auto& bytes : bytes_) offset -= bytes->size();
    for (TensorId id = 0; id < bytes_.size(); ++id) {
      model.tensors[id].extents = {{0, offset, bytes_[id]->size()}};
      offset += bytes_[id]->size();
    }
    model.sources = {std::move(reader)};
    return model;
  }

  /// Every tensor cut into pieces that lie at odd offsets of two files, one read by pread and one
  /// through a mapping, and of one buffer in memory.
  ModelSpec in_pieces(const TemporaryFolder& folder) {
    ModelSpec model = without_sources();
    std::vector<Bytes> contents(3, Bytes(7));
    for (TensorId id = 0; id < bytes_.size(); ++id) {
      for (std::uint64_t done = 0; done < bytes_[id]->size();) {
        const std::uint64_t left = bytes_[id]->size() - done;
        const std::uint64_t size = std::min<std::uint64_t>(left, 1 + random_() % 3000);
        const auto source = static_cast<std::uint32_t>(random_() % contents.size());
        Bytes& content = contents[source];
        model.tensors[id].extents.push_back({source, content.size(), size});
        const auto begin = bytes_[id]->begin() + static_cast<std::ptrdiff_t>(done);
        content.insert(content.end(), begin, begin + static_cast<std::ptrdiff_t>(size));
        content.resize(content.size() + random_() % 5);
        done += size;
      }
    }
    model.sources = {
        open_file_reader(folder.write("pieces_0", contents[0]), FileBackend::kPread),
        open_file_reader(folder.write("pieces_1", contents[1]), FileBackend::kMmap),
        memory_reader("a buffer", std::make_shared<const Bytes>(std::move(contents[2])))};
    return model;
  }

 private:
  ModelSpec without_sources() const {
    ModelSpec model;
    model.groups = groups_;
    for (TensorId id = 0; id < bytes_.size(); ++id) {
      model.tensors.push_back({names_[id], dtypes_[id], bytes_[id]->size(), {}});
    }
    return model;
  }
  GroupId add_empty_group(Residency residency) {
    groups_.push_back({"block." + std::to_string(groups_.size()), {}, residency});
    return static_cast<GroupId>(groups_.size() - 1);
  }
  /// To the last group.
  void add_tensor(Dtype dtype, Bytes bytes) {
    Group& group = groups_.back();
    names_.push_back(group.name + "." + std::to_string(group.tensors.size()));
    group.tensors.push_back(static_cast<TensorId>(bytes_.size()));
    dtypes_.push_back(dtype);
    bytes_.push_back(std::make_shared<const Bytes>(std::move(bytes)));
  }

  std::mt19937_64 random_;
  std::vector<Group> groups_;
  std::vector<std::string> names_;
  std::vector<Dtype> dtypes_;
  std::vector<std::shared_ptr<const Bytes>> bytes_;  // shared with readers and queued checks
};

/// A model of `count` groups, each of one tensor of `size_bytes`.
inline TestModel equal_model(std::size_t count, std::uint64_t size_bytes, std::uint64_t seed = 1) {
  TestModel model(seed);
  for (std::size_t i = 0; i < count; ++i) model.add_group({size_bytes});
  return model;
}

/// Blocks cut in four, a thousandth of Llama's 7B shape, and a head.
inline TestModel llama_like_model() {
  TestModel model;
  for (int block = 0; block < 6; ++block) {
    for (const std::uint64_t size : {128_KiB, 86_KiB, 86_KiB, 86_KiB}) model.add_group({size});
  }
  model.add_group({250_KiB});
  return model;
}

/// The uses of its groups in a step of training: a forward, then each block computed again and its
/// backward.
inline std::vector<GroupId> llama_like_step() {
  std::vector<GroupId> uses(25);
  std::iota(uses.begin(), uses.end(), GroupId{0});
  for (GroupId block = 6; block-- > 0;) {
    for (const GroupId part : {0U, 1U, 2U, 3U, 2U, 1U, 0U}) uses.push_back(4 * block + part);
  }
  return uses;
}

/// A model of `count` groups of one to four tensors of unlike odd sizes.
inline TestModel uneven_model(std::size_t count, std::uint64_t seed) {
  TestModel model(seed);
  std::mt19937_64 random(seed);
  for (std::size_t i = 0; i < count; ++i) {
    std::vector<std::uint64_t> sizes(1 + random() % 4);
    for (std::uint64_t& size : sizes) size = 1 + random() % 9000;
    model.add_group(sizes);
  }
  return model;
}

inline std::uint64_t smallest_budget_of(const ModelSpec& model,
                                        ComputePlace place = ComputePlace::kHost) {
  return smallest_budget_bytes(footprints(model.groups, model.tensors, place));
}

inline std::uint64_t everything_of(const ModelSpec& model,
                                   ComputePlace place = ComputePlace::kHost) {
  return everything_fits_bytes(footprints(model.groups, model.tensors, place));
}

/// `count` budgets from the smallest that works to the one that holds everything.
inline std::vector<std::uint64_t> budgets_of(const ModelSpec& model, std::uint64_t count,
                                             ComputePlace place = ComputePlace::kHost) {
  const std::uint64_t smallest = smallest_budget_of(model, place);
  const std::uint64_t spread = everything_of(model, place) - smallest;
  std::vector<std::uint64_t> budgets;
  for (std::uint64_t i = 0; i < count; ++i) {
    budgets.push_back(smallest + spread * i / (count - 1));
  }
  return budgets;
}

}  // namespace tensorstream

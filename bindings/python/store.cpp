// Checkpoints.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "io/reader.h"
#include "platform/held_file.h"
#include "store/checkpoint.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using namespace nb::literals;

Dtype dtype_of(const std::string& torch_name) {
  const auto dtype = dtype_from_torch_name(torch_name);
  if (!dtype)
    throw UnsupportedError("element type '" + torch_name +
                           "' is not one that safetensors files hold");
  return *dtype;
}

WantedTensor wanted(std::vector<std::string> names, const std::string& torch_name,
                    std::vector<std::uint64_t> shape) {
  return {std::move(names), dtype_of(torch_name), std::move(shape)};
}

void init_held_files(nb::module_& module) {
  nb::class_<HeldFile>(module, "HeldFile")
      .def(nb::init<const std::string&>(), "path"_a, Unlocked())
      .def(
          "is_read_by",
          [](const HeldFile& self, const Reader& reader) {
            return reader.identity() != nullptr && reader.identity()->is_as(self.identity());
          },
          "reader"_a, "Whether a reader reads that file, in the state in which it was before.")
      .def_prop_ro("is_leased", &HeldFile::is_leased, "Whether whoever wants to write to it waits.")
      .def("let_go", &HeldFile::let_go, "Whoever waits to write to it goes on.");
}

}  // namespace

void init_store(nb::module_& module) {
  init_held_files(module);
  nb::class_<CheckpointTensor>(module, "CheckpointTensor")
      .def_prop_ro("name", [](const CheckpointTensor& self) { return self.stored.name; })
      .def_prop_ro("dtype",
                   [](const CheckpointTensor& self) {
                     return std::string(dtype_torch_name(self.stored.dtype));
                   })
      .def_prop_ro("shape", [](const CheckpointTensor& self) { return self.stored.shape; })
      .def_prop_ro("torch_shape",
                   [](const CheckpointTensor& self) { return torch_shape(self.stored); })
      .def_prop_ro("offset_bytes",
                   [](const CheckpointTensor& self) { return self.stored.offset_bytes; })
      .def_prop_ro("size_bytes",
                   [](const CheckpointTensor& self) { return self.stored.size_bytes; })
      .def_ro("file", &CheckpointTensor::file);
  nb::class_<WantedTensor>(module, "WantedTensor");
  module.def("wanted_tensor", &wanted, "names"_a, "dtype"_a, "shape"_a,
             "What a model says of one of its tensors.");
  nb::class_<Checkpoint>(module, "Checkpoint")
      .def_static("open", &Checkpoint::open, "path"_a, Unlocked(),
                  "Opens and checks a safetensors file, index or folder.")
      .def_prop_ro("files", &Checkpoint::files)
      .def(
          "is_read_by",
          [](const Checkpoint& self, std::uint32_t file, const Reader& reader) {
            return reader.identity() != nullptr &&
                   reader.identity()->is_as(self.identities().at(file));
          },
          "file"_a, "reader"_a,
          "Whether a reader reads the file of that number, in the state in which its header was "
          "read.")
      .def_prop_ro("packed", &Checkpoint::packed)
      .def_prop_ro("size_bytes", &Checkpoint::size_bytes)
      .def_prop_ro("tensors",
                   [](const Checkpoint& self) {
                     std::vector<CheckpointTensor> tensors;
                     for (const auto& [name, tensor] : self.tensors()) tensors.push_back(tensor);
                     return tensors;
                   })
      .def(
          "match",
          [](const Checkpoint& self, const std::vector<WantedTensor>& tensors) {
            std::vector<CheckpointTensor> found;
            for (const CheckpointTensor* tensor : match_tensors(self, tensors))
              found.push_back(*tensor);
            return found;
          },
          "wanted"_a, "The checkpoint's tensor for each wanted one, prefixes and ties resolved.");
}

}  // namespace tensorstream

// The codec: tensors to frames and back.
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bindings.h"
#include "codec/tensor_decoder.h"
#include "codec/tensor_encoder.h"
#include "tensorstream/dtype.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using namespace nb::literals;
using ReadOnlyBytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::span<const std::byte> bytes_of(const ReadOnlyBytes& array) {
  return std::as_bytes(std::span(array.data(), array.size()));
}

nb::bytes encode(const ReadOnlyBytes& data, const std::string& torch_name, std::uint32_t level,
                 unsigned threads) {
  const auto dtype = dtype_from_torch_name(torch_name);
  if (!dtype) throw UnsupportedError("element type '" + torch_name + "' cannot be encoded");
  const TensorEncoding encoding{*dtype, CompressionLevel(level), threads};
  std::vector<std::byte> frames;
  unlocked([&] {
    frames.resize(encoded_bound(data.size()));
    frames.resize(encode_tensor(encoding, bytes_of(data), frames));
  });
  return nb::bytes(frames.data(), frames.size());
}

nb::bytes decode(const ReadOnlyBytes& frames, std::uint64_t size_bytes, unsigned threads,
                 const std::string& path, const std::string& tensor) {
  std::vector<std::byte> out;
  unlocked([&] {
    const TensorName name{path, tensor};
    const auto views = parse_tensor(bytes_of(frames), size_bytes, name);
    out.resize(size_bytes);
    decode_tensor(views, out, threads, name);
  });
  return nb::bytes(out.data(), out.size());
}

}  // namespace

void init_codec(nb::module_& module) {
  module.def("encode_tensor", &encode, "data"_a, "dtype"_a, "level"_a, "threads"_a = 1,
             "The frames of a tensor's bytes at a compression level of 0 to 9.");
  module.def(
      "decode_tensor", &decode, "frames"_a, "size_bytes"_a, "threads"_a = 1, "path"_a = "memory",
      "tensor"_a = "",
      "A tensor's bytes from its frames; a FormatError names path, tensor, frame and chunk.");
}

}  // namespace tensorstream

#include "store/safetensors.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <tuple>
#include <utility>

#include "base/units.h"
#include "platform/file.h"
#include "store/json_events.h"
#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr std::size_t kLargestRank = 64;
constexpr std::string_view kMetadataName = "__metadata__";
constexpr std::string_view kDamaged = "; the file is truncated or damaged: fetch it again";

std::string count_text(std::uint64_t count) { return std::to_string(count); }

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (const std::uint64_t extent : shape) {
    if (text.size() > 1) text += ", ";
    text += count_text(extent);
  }
  return text + "]";
}

std::string known_dtypes() {
  std::string text;
#define TS_DTYPE_NAME(id, file_name, torch_name, bits) text += std::string(file_name) + " ";
  TS_DTYPES(TS_DTYPE_NAME)
#undef TS_DTYPE_NAME
  text.pop_back();
  return text;
}

/// Builds the header from its JSON; the tensors' offsets count from the start of the data section.
class HeaderReceiver final : public JsonReceiver {
 public:
  HeaderReceiver(const std::string& path, std::uint64_t data_bytes)
      : path_(path), data_bytes_(data_bytes) {}

  SafetensorsHeader take() { return std::move(header_); }

  void begin_object() override;
  void end_object() override;
  void begin_array() override;
  void end_array() override;
  void key(std::string& name) override;
  void string(std::string& value) override;
  void integer(std::uint64_t value) override;
  void other(std::string_view what) override { refuse(what); }

 private:
  enum class Place { kOutside, kTop, kMetadata, kEntry, kShape, kOffsets };
  enum class Field { kDtype, kShape, kOffsets };

  [[noreturn]] void fail(const std::string& rule) const {
    throw FormatError(path_, name_ == kMetadataName ? "" : shown(name_), rule);
  }
  [[noreturn]] void refuse(std::string_view found) const;
  void add_name(std::string& name);
  void add_field(std::string_view name);
  void add_tensor();
  std::uint64_t tensor_bytes() const;

  const std::string& path_;
  const std::uint64_t data_bytes_;
  SafetensorsHeader header_;
  // Ordered, so that names chosen to collide cost no more than others.
  std::set<std::string, std::less<>> names_;
  Place place_ = Place::kOutside;

  std::string name_;
  std::string metadata_key_;
  Field field_ = Field::kDtype;
  std::optional<Dtype> dtype_;
  std::optional<std::vector<std::uint64_t>> shape_;
  std::optional<std::vector<std::uint64_t>> offsets_;
};

void HeaderReceiver::refuse(std::string_view found) const {
  const std::string what(found);
  switch (place_) {
    case Place::kOutside:
    case Place::kTop:
      if (name_ == kMetadataName) fail("metadata: __metadata__ is " + what + ", not an object");
      fail("entry: is " + what + ", not an object");
    case Place::kMetadata:
      fail("metadata: the value of '" + shown(metadata_key_) + "' is " + what + ", not a string");
    case Place::kShape:
      fail("shape: holds " + what + ", not an integer from 0 to 2^63 - 1");
    case Place::kOffsets:
      fail("data_offsets: holds " + what + ", not an integer from 0 to 2^63 - 1");
    case Place::kEntry:
      break;
  }
  if (field_ == Field::kDtype) fail("dtype: is " + what + ", not a string");
  if (field_ == Field::kShape) fail("shape: is " + what + ", not an array of integers");
  fail("data_offsets: is " + what + ", not an array of two integers");
}

void HeaderReceiver::begin_object() {
  if (place_ == Place::kOutside) {
    place_ = Place::kTop;
    return;
  }
  if (place_ != Place::kTop) refuse("an object");
  place_ = name_ == kMetadataName ? Place::kMetadata : Place::kEntry;
}

void HeaderReceiver::end_object() {
  if (place_ == Place::kEntry) add_tensor();
  place_ = place_ == Place::kTop ? Place::kOutside : Place::kTop;
}

void HeaderReceiver::begin_array() {
  if (place_ != Place::kEntry || field_ == Field::kDtype) refuse("an array");
  if (field_ == Field::kShape) {
    shape_.emplace();
    place_ = Place::kShape;
  } else {
    offsets_.emplace();
    place_ = Place::kOffsets;
  }
}

void HeaderReceiver::end_array() { place_ = Place::kEntry; }

void HeaderReceiver::key(std::string& name) {
  if (place_ == Place::kTop) return add_name(name);
  if (place_ == Place::kEntry) return add_field(name);
  if (!header_.metadata.try_emplace(name).second) {
    fail("duplicate key: __metadata__ has '" + shown(name) + "' twice");
  }
  metadata_key_ = std::move(name);
}

void HeaderReceiver::add_name(std::string& name) {
  name_.clear();
  if (name.empty()) fail("tensor name: a tensor has an empty name");
  name_ = std::move(name);
  if (name_.find('\0') != std::string::npos) fail("tensor name: holds a NUL character");
  if (!names_.insert(name_).second) {
    fail("duplicate key: the header has '" + shown(name_) + "' twice");
  }
  dtype_.reset();
  shape_.reset();
  offsets_.reset();
}

void HeaderReceiver::add_field(std::string_view name) {
  bool seen = false;
  if (name == "dtype") {
    field_ = Field::kDtype;
    seen = dtype_.has_value();
  } else if (name == "shape") {
    field_ = Field::kShape;
    seen = shape_.has_value();
  } else if (name == "data_offsets") {
    field_ = Field::kOffsets;
    seen = offsets_.has_value();
  } else {
    fail("entry: has the field '" + shown(name) +
         "'; dtype, shape and data_offsets are all it may have");
  }
  if (seen) fail("duplicate key: the entry has '" + std::string(name) + "' twice");
}

void HeaderReceiver::string(std::string& value) {
  if (place_ == Place::kMetadata) {
    header_.metadata[metadata_key_] = std::move(value);
    return;
  }
  if (place_ != Place::kEntry || field_ != Field::kDtype) refuse("a string");
  dtype_ = dtype_from_file_name(value);
  if (dtype_) return;
  fail("dtype: '" + shown(value) +
       "' is none of the types that safetensors and torch share: " + known_dtypes());
}

void HeaderReceiver::integer(std::uint64_t value) {
  if (place_ == Place::kShape) {
    if (shape_->size() == kLargestRank) {
      fail("shape: has more than " + count_text(kLargestRank) + " dimensions");
    }
    shape_->push_back(value);
    return;
  }
  if (place_ != Place::kOffsets) refuse("a number");
  if (offsets_->size() == 2) fail("data_offsets: holds more than two integers");
  offsets_->push_back(value);
}

std::uint64_t HeaderReceiver::tensor_bytes() const {
  std::uint64_t elements = 1;
  for (const std::uint64_t extent : *shape_) {
    const auto product = checked_mul(elements, extent);
    if (!product) fail("shape: the product of " + shape_text(*shape_) + " is over 2^64 - 1");
    elements = *product;
  }
  const std::string what =
      shape_text(*shape_) + " elements of " + std::string(dtype_file_name(*dtype_));
  const auto bits = checked_mul(elements, dtype_bits(*dtype_));
  if (!bits) fail("tensor size: " + what + " are more than 2^64 - 1 bits");
  if (*bits % 8 != 0) {
    fail("tensor size: " + what + " are " + count_text(*bits) + " bits, not whole bytes");
  }
  return *bits / 8;
}

void HeaderReceiver::add_tensor() {
  if (!dtype_) fail("entry: has no dtype");
  if (!shape_) fail("entry: has no shape");
  if (!offsets_) fail("entry: has no data_offsets");
  if (offsets_->size() != 2) {
    fail("data_offsets: holds " + count_text(offsets_->size()) + " integers, not two");
  }
  const std::uint64_t begin = offsets_->front();
  const std::uint64_t end = offsets_->back();
  const std::string range = "[" + count_text(begin) + ", " + count_text(end) + "]";
  if (begin > end) fail("data_offsets: " + range + " end before they begin");
  if (end > data_bytes_) {
    fail("data_offsets: " + range + " end beyond the " + count_text(data_bytes_) +
         " bytes of the data section" + std::string(kDamaged));
  }
  const std::uint64_t size = tensor_bytes();
  if (end - begin != size) {
    fail("data_offsets: " + range + " are " + count_text(end - begin) + " bytes, but shape " +
         shape_text(*shape_) + " of " + std::string(dtype_file_name(*dtype_)) + " is " +
         count_text(size));
  }
  header_.tensors.push_back({.name = name_,
                             .dtype = *dtype_,
                             .shape = std::move(*shape_),
                             .offset_bytes = begin,
                             .size_bytes = size});
}

/// Sorts the tensors by offset and checks that they fill the data section: no overlap, no gap.
void check_layout(const std::string& path, std::vector<StoredTensor>& tensors,
                  std::uint64_t data_bytes) {
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::tie(a.offset_bytes, a.size_bytes, a.name) <
           std::tie(b.offset_bytes, b.size_bytes, b.name);
  });
  const StoredTensor* previous = nullptr;
  std::uint64_t filled = 0;
  for (const StoredTensor& tensor : tensors) {
    const std::string start = "its data begin at " + count_text(tensor.offset_bytes);
    if (tensor.offset_bytes < filled) {
      throw FormatError(path, shown(tensor.name),
                        "overlap: " + start + ", inside tensor '" + shown(previous->name) +
                            "', which ends at " + count_text(filled));
    }
    if (tensor.offset_bytes > filled) {
      throw FormatError(
          path, shown(tensor.name),
          "gap: " + start + ", but the tensors before it end at " + count_text(filled));
    }
    filled += tensor.size_bytes;
    previous = &tensor;
  }
  if (filled == data_bytes) return;
  throw FormatError(path, "",
                    "data end: the tensors end at " + count_text(filled) + " of the " +
                        count_text(data_bytes) + " bytes of the data section" +
                        std::string(kDamaged));
}

std::uint64_t read_header_length(const File& file) {
  if (file.size_bytes() < kHeaderLengthBytes) {
    throw FormatError(file.path(), "",
                      "file size: " + count_text(file.size_bytes()) +
                          " bytes do not hold the 8 bytes of the header's length" +
                          std::string(kDamaged));
  }
  std::array<std::byte, kHeaderLengthBytes> bytes{};
  file.read_exact(0, bytes);
  std::uint64_t length = 0;
  std::string start;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    length |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
    start += std::to_integer<char>(bytes[i]);
  }
  if (length == 0) throw FormatError(file.path(), "", "header length: it is 0");
  if (length > kLargestHeaderBytes) {
    const std::string hint =
        start == "version " ? "; this is a Git LFS pointer, not the weights: run `git lfs pull`"
                            : "; this is no safetensors file, or a damaged one";
    throw FormatError(file.path(), "",
                      "header length: " + count_text(length) + " bytes are over the limit of " +
                          count_text(kLargestHeaderBytes) + hint);
  }
  if (length > file.size_bytes() - kHeaderLengthBytes) {
    throw FormatError(file.path(), "",
                      "header length: " + count_text(length) + " bytes do not fit in the file's " +
                          count_text(file.size_bytes()) + std::string(kDamaged));
  }
  return length;
}

/// The header's JSON without the spaces that fill it up.
std::string_view unpadded(const std::string& path, std::string_view header) {
  if (header.front() != '{') {
    throw FormatError(path, "", "header start: the header does not begin with '{'");
  }
  while (header.back() == ' ') header.remove_suffix(1);
  if (header.back() == '}') return header;
  throw FormatError(path, "",
                    "header end: byte " + count_text(header.size() - 1) +
                        " of the header, its last but spaces, is not '}'" + std::string(kDamaged));
}

}  // namespace

HeaderText read_header_text(const File& file) {
  HeaderText header;
  header.text.resize(read_header_length(file));
  file.read_exact(kHeaderLengthBytes, std::as_writable_bytes(std::span(header.text)));
  header.data_bytes = file.size_bytes() - kHeaderLengthBytes - header.text.size();
  return header;
}

SafetensorsHeader parse_header(const std::string& path, const HeaderText& header) {
  const std::string_view json = unpadded(path, header.text);
  HeaderReceiver receiver(path, header.data_bytes);
  if (const auto fault = parse_json(json, receiver)) {
    throw FormatError(path, "",
                      "json: the header is not JSON in UTF-8 at its byte " + count_text(*fault));
  }
  SafetensorsHeader parsed = receiver.take();
  check_layout(path, parsed.tensors, header.data_bytes);
  const std::uint64_t data_start = kHeaderLengthBytes + header.text.size();
  for (StoredTensor& tensor : parsed.tensors) tensor.offset_bytes += data_start;
  return parsed;
}

SafetensorsHeader read_safetensors_header(const std::string& path) {
  const File file = File::open_for_reading(path);
  SafetensorsHeader header = parse_header(path, read_header_text(file));
  header.file = file.identity();
  return header;
}

}  // namespace tensorstream

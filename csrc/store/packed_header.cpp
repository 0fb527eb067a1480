#include "store/packed_header.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "codec/frame_format.h"
#include "store/sealed_text.h"
#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

static_assert(kPartBytes == kFrameBytes);

constexpr std::string_view kVersion = "1";
constexpr std::string_view kVersionKey = "tensorstream.version";
constexpr std::string_view kHeaderKey = "tensorstream.header";
constexpr std::string_view kDataBytesKey = "tensorstream.data_bytes";
constexpr std::string_view kChecksumsKey = "tensorstream.checksums.";
constexpr std::string_view kFramesPrefix = "tensorstream.frames.";
constexpr std::string_view kPaddingPrefix = "tensorstream.padding.";

using Metadata = std::map<std::string, std::string>;
using TensorsByName = std::map<std::string, StoredTensor>;

std::string joined(std::string_view prefix, const std::string& name) {
  return std::string(prefix) + name;
}

PackedExtent extent_of(const StoredTensor& tensor) {
  return {tensor.name, tensor.offset_bytes, tensor.size_bytes};
}

/// Checks what a sealed header says, piece by piece.
class PackedHeaderReader {
 public:
  PackedHeaderReader(const std::string& path, SafetensorsHeader stored)
      : path_(path), metadata_(std::move(stored.metadata)) {
    for (StoredTensor& tensor : stored.tensors) {
      std::string name = tensor.name;
      unused_.emplace(std::move(name), std::move(tensor));
    }
  }

  PackedHeader read() {
    PackedHeader header;
    header.original.text = metadata(kHeaderKey);
    header.original.data_bytes = data_bytes();
    if (header.original.text.empty()) fail("", "packed metadata: the original header is empty");
    for (StoredTensor& tensor : parse_header(path_, header.original).tensors) {
      header.tensors.push_back(find(std::move(tensor)));
    }
    for (const auto& [name, tensor] : unused_) {
      if (!name.starts_with(kPaddingPrefix) || tensor.dtype != Dtype::kU8) {
        fail(name, "packed tensor: the original header does not name it");
      }
      header.padding.push_back(extent_of(tensor));
    }
    return header;
  }

 private:
  [[noreturn]] void fail(const std::string& tensor, const std::string& rule) const {
    throw FormatError(path_, shown(tensor), rule);
  }

  const std::string& metadata(std::string_view key) const {
    const auto found = metadata_.find(std::string(key));
    if (found == metadata_.end()) {
      fail("", "packed metadata: '" + std::string(key) + "' is not there");
    }
    return found->second;
  }

  std::uint64_t data_bytes() const {
    const std::string& text = metadata(kDataBytesKey);
    std::uint64_t value = 0;
    const char* const end = text.data() + text.size();
    const auto [stopped, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc() && stopped == end) return value;
    fail("", "packed metadata: '" + shown(text) + "' is no size of a data section");
  }

  PackedTensor find(StoredTensor original) {
    if (original.name.starts_with(kReservedPrefix)) {
      fail(original.name, "packed tensor: the name is one of the packed format's own");
    }
    PackedTensor tensor{std::move(original), {}, false, {}};
    const auto frames = unused_.find(joined(kFramesPrefix, tensor.original.name));
    const auto plain = unused_.find(tensor.original.name);
    if ((frames == unused_.end()) == (plain == unused_.end())) {
      fail(tensor.original.name, plain == unused_.end()
                                     ? "packed tensor: it is not in the file"
                                     : "packed tensor: it is there twice, encoded and as it was");
    }
    tensor.encoded = plain == unused_.end();
    const auto found = tensor.encoded ? frames : plain;
    if (tensor.encoded) {
      check_frames(found->second);
    } else {
      check_plain(found->second, tensor.original);
    }
    tensor.stored = extent_of(found->second);
    tensor.checksums = checksums_of(tensor.original);
    unused_.erase(found);
    return tensor;
  }

  void check_frames(const StoredTensor& stored) const {
    const bool sound = stored.dtype == Dtype::kU8 && stored.shape.size() == 1 &&
                       stored.size_bytes % kPackedAlignment == 0;
    if (sound) return;
    fail(stored.name, "packed tensor: frames are one dimension of U8, a multiple of 4096");
  }

  void check_plain(const StoredTensor& stored, const StoredTensor& original) const {
    if (stored.dtype == original.dtype && stored.shape == original.shape) return;
    fail(stored.name, "packed tensor: its type or shape is not that of the original header");
  }

  std::vector<std::uint64_t> checksums_of(const StoredTensor& original) const {
    auto checksums = checksums_from(metadata(joined(kChecksumsKey, original.name)));
    if (checksums && checksums->size() == parts_of(original.size_bytes)) return *checksums;
    fail(original.name, "packed metadata: its checksums are not one for each chunk of 2 MiB");
  }

  const std::string& path_;
  const Metadata metadata_;
  TensorsByName unused_;
};

}  // namespace

bool is_packed(const SafetensorsHeader& header) {
  const auto first = header.metadata.lower_bound(std::string(kReservedPrefix));
  return first != header.metadata.end() && first->first.starts_with(kReservedPrefix);
}

PackedHeader read_packed_header(const File& file) {
  const HeaderText text = read_header_text(file);
  SafetensorsHeader stored = parse_header(file.path(), text);
  if (!is_sealed(text.text, kSealedHeaderStart)) {  // guard: packed-header-sealed
    throw FormatError(
        file.path(), "",
        "packed header: its checksum is not that of its bytes; the file is damaged, "
        "or not one that tensorstream.pack wrote: of a plain file remove the keys that "
        "begin with '" +
            std::string(kReservedPrefix) + "' from its metadata");
  }
  const auto version = stored.metadata.find(std::string(kVersionKey));
  if (version != stored.metadata.end() && version->second != kVersion) {
    throw UnsupportedError("'" + file.path() + "' has version '" + shown(version->second) +
                           "' of the packed format, and this TensorStream reads version " +
                           std::string(kVersion) + "; upgrade TensorStream");
  }
  PackedHeader header = PackedHeaderReader(file.path(), std::move(stored)).read();
  header.seal = seal_of(text.text, kSealedHeaderStart);
  return header;
}

void PackedHeaderWriter::add_frames(const StoredTensor& tensor, std::uint64_t begin,
                                    std::uint64_t end, std::span<const std::uint64_t> checksums) {
  add_checksums(tensor.name, checksums);
  const std::array<std::uint64_t, 1> shape{end - begin};
  add_entry(joined(kFramesPrefix, tensor.name), dtype_file_name(Dtype::kU8), shape, begin, end);
}

void PackedHeaderWriter::add_plain(const StoredTensor& tensor, std::uint64_t begin,
                                   std::span<const std::uint64_t> checksums) {
  add_checksums(tensor.name, checksums);
  add_entry(tensor.name, dtype_file_name(tensor.dtype), tensor.shape, begin,
            begin + tensor.size_bytes);
}

void PackedHeaderWriter::add_padding(const StoredTensor& tensor, std::uint64_t begin,
                                     std::uint64_t end) {
  const std::array<std::uint64_t, 1> shape{end - begin};
  add_entry(joined(kPaddingPrefix, tensor.name), dtype_file_name(Dtype::kU8), shape, begin, end);
}

void PackedHeaderWriter::add_checksums(const std::string& name,
                                       std::span<const std::uint64_t> checksums) {
  metadata_ +=
      "," + json_string(joined(kChecksumsKey, name)) + ":\"" + checksums_text(checksums) + "\"";
}

void PackedHeaderWriter::add_entry(const std::string& name, std::string_view dtype,
                                   std::span<const std::uint64_t> shape, std::uint64_t begin,
                                   std::uint64_t end) {
  names_.push_back(name);
  std::string extents;
  for (const std::uint64_t extent : shape) {
    if (!extents.empty()) extents += ",";
    extents += std::to_string(extent);
  }
  entries_ += "," + json_string(name) + R"(:{"dtype":")" + std::string(dtype) + R"(","shape":[)" +
              extents + R"(],"data_offsets":[)" + std::to_string(begin) + "," +
              std::to_string(end) + "]}";
}

std::string PackedHeaderWriter::unfilled() const {
  return open_seal(kSealedHeaderStart) + R"(,")" + std::string(kVersionKey) + R"(":")" +
         std::string(kVersion) + R"(",")" + std::string(kDataBytesKey) + R"(":")" +
         std::to_string(original_.data_bytes) + R"(",")" + std::string(kHeaderKey) + R"(":)" +
         json_string(original_.text) + metadata_ + "}" + entries_ + "}";
}

std::string PackedHeaderWriter::text(std::uint64_t size_bytes) const {
  std::string text = unfilled();
  text.resize(std::max<std::uint64_t>(size_bytes, text.size()), ' ');
  close_seal(text, kSealedHeaderStart);
  return text;
}

std::uint64_t PackedHeaderWriter::bound(const std::string& path, const HeaderText& original,
                                        std::span<const StoredTensor> tensors) {
  // Each tensor in both ways, with padding, and at offsets of as many digits as any has.
  constexpr std::uint64_t kFar = std::uint64_t{1} << 62U;
  PackedHeaderWriter largest(original);
  for (const StoredTensor& tensor : tensors) {
    largest.add_padding(tensor, kFar, kFar + kPackedAlignment);
    largest.add_frames(tensor, 0, kFar, {});
    largest.add_plain(tensor, kFar, std::vector<std::uint64_t>(parts_of(tensor.size_bytes)));
  }
  const std::uint64_t start =
      align_up(kHeaderLengthBytes + largest.unfilled().size(), kPackedAlignment);
  if (start - kHeaderLengthBytes <= kLargestHeaderBytes) return start - kHeaderLengthBytes;
  throw UnsupportedError("'" + path + "' cannot be packed: the packed header may take " +
                         format_size(start) + ", and safetensors allows 100 MB; split the file");
}

}  // namespace tensorstream

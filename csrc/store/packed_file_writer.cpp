#include "store/packed_file_writer.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "codec/checksum.h"
#include "codec/element_layout.h"
#include "codec/frame_encoder.h"
#include "codec/frame_format.h"
#include "codec/tensor_encoder.h"
#include "platform/file_lease.h"
#include "platform/output_file.h"
#include "store/packed_file_reader.h"
#include "store/packed_header.h"
#include "store/sealed_text.h"
#include "store/shown_text.h"
#include "store/turn_line.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// A part of a tensor: what one thread reads and encodes at a time.
struct Part {
  std::size_t tensor = 0;
  std::uint64_t offset_bytes = 0;
  std::uint64_t size_bytes = 0;
  bool last = false;
};

std::vector<Part> parts_in(std::span<const StoredTensor> tensors) {
  std::vector<Part> parts;
  for (std::size_t tensor = 0; tensor < tensors.size(); ++tensor) {
    const std::uint64_t whole = tensors[tensor].size_bytes;
    for (std::uint64_t offset = 0; offset < whole; offset += kPartBytes) {
      const std::uint64_t size = std::min(kPartBytes, whole - offset);
      parts.push_back({tensor, offset, size, offset + size == whole});
    }
  }
  return parts;
}

/// A frame, and its own checksum.
struct EncodedPart {
  std::span<const std::byte> bytes;
  std::uint64_t checksum = 0;
};

/// What a thread encodes with.
class PartEncoder {
 public:
  explicit PartEncoder(CompressionLevel level) : level_(level) {}

  std::span<std::byte> raw(std::uint64_t size_bytes) {
    raw_.resize(size_bytes);
    return raw_;
  }

  /// The frame of what raw() holds.
  EncodedPart encode(Dtype dtype) {
    if (!encoder_ || dtype_ != dtype) {
      encoder_ = std::make_unique<FrameEncoder>(dtype, level_);
      dtype_ = dtype;
    }
    frame_.resize(frame_bound(raw_.size()));
    const auto bytes = std::span(frame_).first(encoder_->encode(raw_, frame_));
    return {bytes, FrameView::stated_checksum(bytes)};
  }

 private:
  const CompressionLevel level_;
  std::unique_ptr<FrameEncoder> encoder_;
  Dtype dtype_ = Dtype::kU8;
  std::vector<std::byte> raw_;
  std::vector<std::byte> frame_;
};

/// Lays tensors one behind the other. All but encoded() is called in turns.
class FilePacker {
 public:
  FilePacker(const PackSource& source, const std::string& path, const PackOptions& options)
      : source_(source),
        options_(options),
        parts_(parts_in(source.tensors)),
        out_(OutputFile::create(path)),
        header_bytes_(PackedHeaderWriter::bound(source.file.path(), source.header, source.tensors)),
        header_(source.header) {}

  PackedFileSummary pack(Progress& progress) {
    for (const StoredTensor& tensor : source_.tensors) {
      if (tensor.size_bytes == 0) header_.add_plain(tensor, 0, {});
    }
    TurnLine line(parts_.size());
    line.run(options_.threads, [&]() -> TurnLine::Work {
      auto encoder = std::make_shared<PartEncoder>(options_.level);
      return [this, encoder, &line, &progress](std::uint64_t number) {
        pack_part(line, number, *encoder);
        progress.add(parts_[number].size_bytes);
      };
    });
    const std::string text = write_header();
    // What a tensor left that turned out not to pay may be longer than what took its place.
    out_.resize(data_start() + end_);
    out_.sync();
    return {header_.names(), source_.tensors.size(), encoded_tensors_, data_start() + end_,
            seal_of(text, kSealedHeaderStart)};
  }

 private:
  std::uint64_t data_start() const { return kHeaderLengthBytes + header_bytes_; }

  bool may_pay(const StoredTensor& tensor) const {
    return !options_.level.stores_raw() && layout_of(tensor.dtype).has_value() &&
           pays(kPackedAlignment, tensor.size_bytes);
  }

  void pack_part(TurnLine& line, std::uint64_t number, PartEncoder& encoder) {
    const Part& part = parts_[number];
    const StoredTensor& tensor = source_.tensors[part.tensor];
    const std::span<std::byte> raw = encoder.raw(part.size_bytes);
    source_.file.read_exact(tensor.offset_bytes + part.offset_bytes, raw);
    if (may_pay(tensor)) {
      const EncodedPart frame = encoder.encode(tensor.dtype);
      line.in_turn(number, [&] { add_frame(tensor, part, frame); });
      return;
    }
    const std::uint64_t checksum = checksum_of(raw);
    line.in_turn(number, [&] {
      add_plain_part(part, tensor, raw, checksum);
      if (part.last) header_.add_plain(tensor, begin_, checksums_);
    });
  }

  void add_frame(const StoredTensor& tensor, const Part& part, const EncodedPart& frame) {
    if (part.offset_bytes == 0) begin(tensor);
    append(frame.bytes);
    checksums_.push_back(frame.checksum);
    if (!part.last) return;
    const std::uint64_t frames_end = align_up(end_, kPackedAlignment);
    if (pays(frames_end - begin_, tensor.size_bytes)) {
      append_zeros(frames_end - end_);
      header_.add_frames(tensor, begin_, end_, checksums_);
      ++encoded_tensors_;
      return;
    }
    store_plain(tensor);
  }

  /// Puts the tensor as it is in the place of its frames.
  void store_plain(const StoredTensor& tensor) {
    end_ = begin_;
    checksums_.clear();
    std::vector<std::byte> part(kPartBytes);
    for (std::uint64_t offset = 0; offset < tensor.size_bytes; offset += part.size()) {
      part.resize(std::min(kPartBytes, tensor.size_bytes - offset));
      source_.file.read_exact(tensor.offset_bytes + offset, part);
      append(part);
      checksums_.push_back(checksum_of(part));
    }
    header_.add_plain(tensor, begin_, checksums_);
  }

  void add_plain_part(const Part& part, const StoredTensor& tensor, std::span<const std::byte> raw,
                      std::uint64_t checksum) {
    if (part.offset_bytes == 0) begin(tensor);
    append(raw);
    checksums_.push_back(checksum);
  }

  /// The next tensor begins at a multiple of its alignment.
  void begin(const StoredTensor& tensor) {
    const std::uint64_t aligned = align_up(end_, alignment_in_packed(tensor.size_bytes));
    if (aligned != end_) {
      header_.add_padding(tensor, end_, aligned);
      append_zeros(aligned - end_);
    }
    begin_ = end_;
    checksums_.clear();
  }

  void append(std::span<const std::byte> bytes) {
    out_.write_at(data_start() + end_, bytes);
    end_ += bytes.size();
  }

  void append_zeros(std::uint64_t size_bytes) {
    static constexpr std::array<std::byte, kPackedAlignment> kZeros{};
    append(std::span(kZeros).first(size_bytes));
  }

  std::string write_header() {
    std::string text = header_.text(header_bytes_);
    std::array<std::byte, kHeaderLengthBytes> length{};
    for (std::size_t i = 0; i < length.size(); ++i) {
      length[i] = static_cast<std::byte>(text.size() >> (8 * i));
    }
    out_.write_at(0, length);
    out_.write_at(length.size(), std::as_bytes(std::span(text)));
    return text;
  }

  // Constant after construction.
  const PackSource& source_;
  const PackOptions options_;
  const std::vector<Part> parts_;
  const OutputFile out_;
  const std::uint64_t header_bytes_;

  // Used in turns only.
  PackedHeaderWriter header_;
  std::uint64_t begin_ = 0;  // of the tensor under way, from the start of the data section
  std::uint64_t end_ = 0;
  std::vector<std::uint64_t> checksums_;
  std::uint64_t encoded_tensors_ = 0;
};

}  // namespace

PackSource open_pack_source(const std::string& path) {
  File file = File::open_for_reading(path);
  check_no_writer(file);  // guard: pack-no-writer
  HeaderText header = read_header_text(file);
  SafetensorsHeader parsed = parse_header(path, header);
  if (is_packed(parsed)) {
    throw UnsupportedError("'" + path + "' is packed already; tensorstream.unpack gives its files");
  }
  for (const StoredTensor& tensor : parsed.tensors) {
    if (!tensor.name.starts_with(kReservedPrefix)) continue;
    throw UnsupportedError("'" + path + "' cannot be packed: the name of its tensor '" +
                           shown(tensor.name) + "' begins with '" + std::string(kReservedPrefix) +
                           "', as those of packed files do; rename it");
  }
  return {std::move(file), std::move(header), std::move(parsed.tensors)};
}

std::uint64_t packed_bound(const PackSource& source) {
  std::uint64_t bound = kHeaderLengthBytes + PackedHeaderWriter::bound(
                                                 source.file.path(), source.header, source.tensors);
  // The tensors are in a file: neither their sum nor that of their bounds can overflow.
  for (const StoredTensor& tensor : source.tensors) {
    bound += kPackedAlignment + align_up(encoded_bound(tensor.size_bytes), kPackedAlignment);
  }
  return bound;
}

PackedFileSummary write_packed_file(const PackSource& source, const std::string& path,
                                    const PackOptions& options, Progress& progress) {
  return FilePacker(source, path, options).pack(progress);
}

std::optional<PackedFileSummary> find_packed_file(const PackSource& source, const std::string& path,
                                                  unsigned threads) {
  try {
    const File file = File::open_for_reading(path);
    const PackedHeader header = read_packed_header(file);
    const bool same = header.original.text == source.header.text &&
                      header.original.data_bytes == source.header.data_bytes;
    if (!same) return std::nullopt;
    Progress unseen({}, 0);
    scan_packed_file(file, header, threads, {}, unseen);  // guard: left-file-whole
    sync_file(path);
    PackedFileSummary found;
    found.tensors = header.tensors.size();
    found.size_bytes = file.size_bytes();
    found.seal = header.seal;
    for (const PackedTensor& tensor : header.tensors) {
      found.names.push_back(tensor.stored.name);
      found.encoded_tensors += tensor.encoded ? 1 : 0;
    }
    for (const PackedExtent& extent : header.padding) found.names.push_back(extent.name);
    return found;
  } catch (const FormatError&) {
    return std::nullopt;
  } catch (const UnsupportedError&) {
    return std::nullopt;
  }
}

}  // namespace tensorstream

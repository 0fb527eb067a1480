#include "store/packed_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "base/units.h"
#include "codec/frame_decoder.h"
#include "platform/page_cache.h"
#include "platform/thread_team.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// Memory whose pages are touched only where bytes are read to.
struct Scratch {
  explicit Scratch(std::uint64_t size_bytes)
      : bytes(std::make_unique_for_overwrite<std::byte[]>(size_bytes)), size(size_bytes) {}
  std::span<std::byte> span() const { return {bytes.get(), size}; }

  std::unique_ptr<std::byte[]> bytes;
  std::uint64_t size;
};

/// Runs a step that finds damage, and says where the file changed that this is no damage.
template <typename Step>
void find_damage(const File& file, const Step& step) {
  try {
    step();
  } catch (const FormatError&) {
    file.check_unchanged();  // guard: packed-changed-not-damaged
    throw;
  }
}

}  // namespace

PackedFile::PackedFile(const std::string& path)
    : file_(File::open_for_reading(path)),
      header_(read_packed_header(file_)),
      lies_in_ram_(tensorstream::lies_in_ram(file_)),
      frames_(header_.tensors.size()),
      verified_(header_.tensors.size()) {}

std::uint64_t PackedFile::size_bytes() const noexcept {
  return kHeaderLengthBytes + header_.original.text.size() + header_.original.data_bytes;
}

const PackedTensor* PackedFile::tensor_at(std::uint64_t offset_bytes) const noexcept {
  const auto begin_of = [](const PackedTensor& tensor) { return tensor.original.offset_bytes; };
  // Of several that begin there, all but the last are empty.
  const auto behind = std::ranges::upper_bound(header_.tensors, offset_bytes, {}, begin_of);
  if (behind == header_.tensors.begin()) return nullptr;
  const PackedTensor& tensor = *std::prev(behind);
  const bool inside = offset_bytes - begin_of(tensor) < tensor.original.size_bytes;
  return inside ? &tensor : nullptr;
}

void PackedFile::read(std::uint64_t offset_bytes, std::span<std::byte> out) const {
  for (std::uint64_t done = 0; done < out.size();) {
    const std::uint64_t at = offset_bytes + done;
    const PackedTensor* const tensor = tensor_at(at);
    if (tensor == nullptr) {
      throw IoError("read of " + format_size(out.size()) + " at offset " +
                        std::to_string(offset_bytes) + " of what '" + path() +
                        "' was packed from failed: no tensor has the byte " + std::to_string(at),
                    path(), offset_bytes, 0);
    }
    const std::uint64_t in_tensor = at - tensor->original.offset_bytes;
    const PackedPart part = part_of(*tensor, in_tensor / kPartBytes);
    const std::uint64_t skip = in_tensor - part.offset_bytes;
    const std::uint64_t size = std::min<std::uint64_t>(part.size_bytes - skip, out.size() - done);
    find_damage(file_, [&] { read_part(part, skip, out.subspan(done, size)); });
    done += size;
  }
  // Afterwards: bytes of a file that was rewritten meanwhile are not handed out either.
  file_.check_unchanged();  // guard: packed-read-unchanged
}

void PackedFile::read_part(const PackedPart& part, std::uint64_t skip_bytes,
                           std::span<std::byte> out) const {
  if (part.tensor.encoded) {
    read_encoded(part, skip_bytes, out);
  } else {
    read_plain(part, skip_bytes, out);
  }
}

void PackedFile::read_plain(const PackedPart& part, std::uint64_t skip_bytes,
                            std::span<std::byte> out) const {
  const std::uint64_t begin = part.tensor.stored.offset_bytes + part.offset_bytes;
  if (out.size() == part.size_bytes) {
    file_.read_exact(begin, out);
    check_plain_part(path(), part, out);
    return;
  }
  const Scratch whole(part.size_bytes);
  file_.read_exact(begin, whole.span());
  check_plain_part(path(), part, whole.span());
  std::memcpy(out.data(), whole.bytes.get() + skip_bytes, out.size());
}

void PackedFile::read_encoded(const PackedPart& part, std::uint64_t skip_bytes,
                              std::span<std::byte> out) const {
  const Range place = frame_of(part);
  const Scratch stored(place.size_bytes);
  if (out.size() == part.size_bytes) {
    file_.read_exact(place.offset_bytes, stored.span());
    const FrameView frame = checked_frame(path(), part, stored.span());
    if (const auto fault = decode_frame(frame, out)) refuse_frame(path(), part, *fault);
    return;
  }
  file_.read_exact(place.offset_bytes, stored.span().first(kFrameHeaderBytes));
  const std::uint64_t index =
      std::min(FrameView::stated_index_end(stored.span()), place.size_bytes);
  if (index > kFrameHeaderBytes) {
    file_.read_exact(place.offset_bytes + kFrameHeaderBytes,
                     stored.span().subspan(kFrameHeaderBytes, index - kFrameHeaderBytes));
  }
  decode_some(part, checked_frame(path(), part, stored.span()), stored.span(), skip_bytes, out);
}

void PackedFile::decode_some(const PackedPart& part, const FrameView& frame,
                             std::span<std::byte> stored, std::uint64_t skip_bytes,
                             std::span<std::byte> out) const {
  const std::uint64_t begin = frame_of(part).offset_bytes;
  std::vector<std::byte> whole;  // of a chunk that is not wanted whole
  // All chunks but the last decode to as much.
  auto chunk = static_cast<std::uint32_t>(skip_bytes / frame.decoded_bytes(0));
  for (std::uint64_t done = 0; done < out.size(); ++chunk) {
    const std::span<const std::byte> coded = frame.chunk(chunk);
    const auto offset = static_cast<std::uint64_t>(coded.data() - stored.data());
    file_.read_exact(begin + offset, stored.subspan(offset, coded.size()));
    const std::uint64_t skip = skip_bytes + done - frame.decoded_offset(chunk);
    const std::uint64_t chunk_bytes = frame.decoded_bytes(chunk);
    const std::uint64_t size = std::min<std::uint64_t>(chunk_bytes - skip, out.size() - done);
    const bool direct = size == chunk_bytes;
    if (!direct) whole.resize(chunk_bytes);
    const auto target = direct ? out.subspan(done, size) : std::span(whole);
    if (const auto fault = decode_chunk(frame, chunk, target)) refuse_frame(path(), part, *fault);
    if (!direct) std::memcpy(out.data() + done, whole.data() + skip, size);
    done += size;
  }
}

std::uint64_t PackedFile::read_frame(std::uint64_t offset_bytes, std::uint64_t decoded_bytes,
                                     std::span<std::byte> out) const {
  const PackedTensor* const tensor = tensor_at(offset_bytes);
  if (tensor == nullptr || !tensor->encoded) return 0;
  const std::uint64_t in_tensor = offset_bytes - tensor->original.offset_bytes;
  const PackedPart part = part_of(*tensor, in_tensor / kPartBytes);
  if (part.offset_bytes != in_tensor || part.size_bytes != decoded_bytes) return 0;
  const Range place = frame_of(part);
  // A frame is never longer than a raw one of as many bytes: that is why this fits, or is damaged.
  const auto stored = out.first(std::min<std::uint64_t>(place.size_bytes, out.size()));
  file_.read_exact(place.offset_bytes, stored);
  find_damage(file_, [&] {
    const auto fault = verify_frame(checked_frame(path(), part, stored));
    if (fault) {  // guard: packed-frame-verified
      refuse_frame(path(), part, *fault);
    }
  });
  file_.check_unchanged();
  return stored.size();
}

std::optional<PackedSpan> PackedFile::span_at(std::uint64_t offset_bytes,
                                              std::uint64_t decoded_bytes,
                                              std::uint64_t most_bytes) const {
  const PackedTensor* const tensor = tensor_at(offset_bytes);
  if (tensor == nullptr) return std::nullopt;
  const std::uint64_t in_tensor = offset_bytes - tensor->original.offset_bytes;
  if (in_tensor % kPartBytes != 0) return std::nullopt;
  PackedSpan span{.tensor = tensor, .first = in_tensor / kPartBytes};
  for (std::uint64_t number = span.first; number < tensor->checksums.size(); ++number) {
    const PackedPart part = part_of(*tensor, number);
    if (part.size_bytes > decoded_bytes - span.decoded_bytes) break;
    const Range place = place_of(part);
    if (place.size_bytes > most_bytes - span.size_bytes) break;
    if (span.count == 0) span.offset_bytes = place.offset_bytes;
    ++span.count;
    span.decoded_bytes += part.size_bytes;
    span.size_bytes += place.size_bytes;
  }
  return span.count == 0 ? std::nullopt : std::optional(span);
}

void PackedFile::decode(const PackedSpan& span, std::span<const std::byte> stored,
                        std::span<std::byte> out) const {
  const auto decode_part = [&](const PackedPart& part) {
    const std::span<std::byte> target = out.first(part.size_bytes);
    const std::span<const std::byte> bytes = stored.first(place_of(part).size_bytes);
    if (!span.tensor->encoded) {
      check_plain_part(path(), part, bytes);
      std::memcpy(target.data(), bytes.data(), target.size());
    } else if (const auto fault = decode_frame(checked_frame(path(), part, bytes), target)) {
      refuse_frame(path(), part, *fault);
    }
    stored = stored.subspan(bytes.size());
    out = out.subspan(target.size());
  };
  find_damage(file_, [&] {
    for (std::uint64_t number = span.first; number < span.first + span.count; ++number) {
      decode_part(part_of(*span.tensor, number));
    }
  });
  file_.check_unchanged();  // guard: packed-span-unchanged
}

void PackedFile::verify(const PackedSpan& span, std::span<const std::byte> stored,
                        ThreadTeam* team) const {
  const std::uint64_t begin = span.offset_bytes;
  const auto verify_part = [&](std::size_t index) {
    const PackedPart part = part_of(*span.tensor, span.first + index);
    const Range place = place_of(part);
    const auto bytes = stored.subspan(place.offset_bytes - begin, place.size_bytes);
    if (const auto fault = verify_frame(checked_frame(path(), part, bytes))) {
      refuse_frame(path(), part, *fault);  // guard: packed-span-verified
    }
  };
  if (!was_verified(span)) {
    find_damage(file_, [&] {
      if (team != nullptr) {
        team->share(span.count, verify_part);
      } else {
        for (std::size_t index = 0; index < span.count; ++index) verify_part(index);
      }
    });
  }
  file_.check_unchanged();  // guard: verified-span-unchanged
  note_verified(span);
}

bool PackedFile::was_verified(const PackedSpan& span) const {
  const MutexLock lock(mutex_);
  const std::vector<bool>& parts = verified_[number_of(*span.tensor)];
  if (parts.empty()) return false;
  const auto first = parts.begin() + static_cast<std::ptrdiff_t>(span.first);
  return std::all_of(first, first + static_cast<std::ptrdiff_t>(span.count),
                     [](bool verified) { return verified; });
}

void PackedFile::note_verified(const PackedSpan& span) const {
  if (!lies_in_ram_) return;  // guard: disks-verified-each-time
  const MutexLock lock(mutex_);
  std::vector<bool>& parts = verified_[number_of(*span.tensor)];
  parts.resize(span.tensor->checksums.size());
  std::fill_n(parts.begin() + static_cast<std::ptrdiff_t>(span.first), span.count, true);
}

std::size_t PackedFile::number_of(const PackedTensor& tensor) const noexcept {
  return static_cast<std::size_t>(&tensor - header_.tensors.data());
}

std::uint64_t PackedFile::part_end(std::uint64_t offset_bytes) const noexcept {
  const PackedTensor* const tensor = tensor_at(offset_bytes);
  if (tensor == nullptr) return offset_bytes;
  const std::uint64_t in_tensor = offset_bytes - tensor->original.offset_bytes;
  const std::uint64_t end = (in_tensor / kPartBytes + 1) * kPartBytes;
  return tensor->original.offset_bytes + std::min(end, tensor->original.size_bytes);
}

PackedFile::Range PackedFile::place_of(const PackedPart& part) const {
  if (part.tensor.encoded) return frame_of(part);
  return {part.tensor.stored.offset_bytes + part.offset_bytes, part.size_bytes};
}

PackedFile::Range PackedFile::frame_of(const PackedPart& part) const {
  const std::size_t tensor = number_of(part.tensor);
  {
    const MutexLock lock(mutex_);
    const std::vector<std::uint64_t>& begins = frames_[tensor];
    if (!begins.empty()) {
      return {begins[part.number], begins[part.number + 1] - begins[part.number]};
    }
  }
  std::vector<std::uint64_t> begins;
  find_damage(file_, [&] { begins = find_frames(part.tensor); });
  const Range place{begins[part.number], begins[part.number + 1] - begins[part.number]};
  const MutexLock lock(mutex_);
  if (frames_[tensor].empty()) frames_[tensor] = std::move(begins);
  return place;
}

std::vector<std::uint64_t> PackedFile::find_frames(const PackedTensor& tensor) const {
  const std::uint64_t end = tensor.stored.offset_bytes + tensor.stored.size_bytes;
  std::vector<std::uint64_t> begins{tensor.stored.offset_bytes};
  begins.reserve(tensor.checksums.size() + 1);
  for (std::uint64_t number = 0; number < tensor.checksums.size(); ++number) {
    const std::uint64_t left = end - begins.back();
    std::array<std::byte, kFrameHeaderBytes> start{};
    const bool room = left >= start.size();
    if (room) file_.read_exact(begins.back(), start);
    if (!room || FrameView::stated_checksum(start) != tensor.checksums[number]) {
      refuse_first_damage(tensor, begins);
    }
    const std::uint64_t longest = std::min(left, frame_bound(part_of(tensor, number).size_bytes));
    const std::uint64_t size =
        std::clamp(FrameView::stated_bytes(start), kFrameHeaderBytes, longest);
    begins.push_back(begins.back() + size);
  }
  return begins;
}

/// What a frame says of its length may be damaged, and the next is then not where it is looked for.
void PackedFile::refuse_first_damage(const PackedTensor& tensor,
                                     std::span<const std::uint64_t> begins) const {
  const std::uint64_t end = tensor.stored.offset_bytes + tensor.stored.size_bytes;
  for (std::uint64_t number = 0; number < begins.size(); ++number) {
    const PackedPart part = part_of(tensor, number);
    const std::uint64_t next = number + 1 < begins.size() ? begins[number + 1] : end;
    const Scratch stored(std::min(next - begins[number], frame_bound(part.size_bytes)));
    file_.read_exact(begins[number], stored.span());
    static_cast<void>(checked_frame(path(), part, stored.span()));
  }
  // Its frames are all right by now: the file is being written to.
  file_.check_unchanged();
  refuse_frame(path(), part_of(tensor, begins.size() - 1),
               {FrameRule::kHeaderChecksum, std::nullopt});
}

/// Frames of a tensor lie about as far in it as what they decode to.
PackedFile::Range PackedFile::stored_range(std::uint64_t offset_bytes,
                                           std::uint64_t size_bytes) const noexcept {
  const PackedTensor* const first = tensor_at(offset_bytes);
  const PackedTensor* const last =
      size_bytes == 0 ? first : tensor_at(offset_bytes + size_bytes - 1);
  if (first == nullptr || last == nullptr) return {};
  const auto scaled = [](const PackedTensor& tensor, std::uint64_t at) {
    const double share = static_cast<double>(at - tensor.original.offset_bytes) /
                         static_cast<double>(tensor.original.size_bytes);
    const auto in_stored =
        static_cast<std::uint64_t>(share * static_cast<double>(tensor.stored.size_bytes));
    return tensor.stored.offset_bytes + std::min(in_stored, tensor.stored.size_bytes);
  };
  const std::uint64_t begin = scaled(*first, offset_bytes);
  return {begin, std::max(begin, scaled(*last, offset_bytes + size_bytes)) - begin};
}

std::uint64_t PackedFile::encoded_bytes(std::uint64_t offset_bytes,
                                        std::uint64_t size_bytes) const noexcept {
  const PackedTensor* const tensor = tensor_at(offset_bytes);
  if (tensor == nullptr || !tensor->encoded) return 0;
  return stored_range(offset_bytes, size_bytes).size_bytes;
}

bool PackedFile::cached(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept {
  const Range range = stored_range(offset_bytes, size_bytes);
  return ends_in_page_cache(file_, range.offset_bytes, range.size_bytes);
}

void PackedFile::prefetch(std::uint64_t offset_bytes, std::uint64_t size_bytes) const noexcept {
  const Range range = stored_range(offset_bytes, size_bytes);
  if (range.size_bytes != 0) {
    read_into_page_cache(file_, range.offset_bytes, range.size_bytes);
  }
}

}  // namespace tensorstream

#include "engine/encoded_home.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <variant>

#include "base/units.h"
#include "codec/frame_decoder.h"
#include "tensorstream/error.h"

namespace tensorstream {

std::span<const BatchedFrame> EncodedHome::Batch::frames() const noexcept {
  return {reinterpret_cast<const BatchedFrame*>(bytes.data()), frame_count};
}

EncodedHome::EncodedHome(const std::string& group, std::uint64_t size_bytes, PinnedMemory memory,
                         std::vector<Batch> batches, std::vector<Frame> frames)
    : name_("encoded host memory of '" + group + "'"),
      size_bytes_(size_bytes),
      memory_(std::move(memory)),
      batches_(std::move(batches)),
      frames_(std::move(frames)) {}

void EncodedHome::read(std::uint64_t offset_bytes, std::span<std::byte> out) {
  const auto end = checked_add(offset_bytes, out.size());
  if (!end || *end > size_bytes_) {
    throw IoError("read of " + format_size(out.size()) + " at offset " +
                      std::to_string(offset_bytes) + " of " + name_ + " failed: it has " +
                      std::to_string(size_bytes_) + " bytes",
                  name_, offset_bytes, 0);
  }
  auto frame = std::ranges::upper_bound(frames_, offset_bytes, {}, &Frame::decoded_offset);
  if (frame != frames_.begin()) --frame;
  std::uint64_t filled = 0;
  for (; frame != frames_.end() && frame->decoded_offset < *end; ++frame) {
    const std::uint64_t frame_end = frame->decoded_offset + frame->view.header().decoded_bytes;
    const std::uint64_t begin = std::max(offset_bytes, frame->decoded_offset);
    const std::uint64_t stop = std::min(*end, frame_end);
    if (begin >= stop) continue;
    const std::span<std::byte> gap =
        out.subspan(filled, begin - offset_bytes - filled);  // between tensors
    std::ranges::fill(gap, std::byte{0});
    decode_frame(*frame, begin - frame->decoded_offset,
                 out.subspan(begin - offset_bytes, stop - begin));
    filled = stop - offset_bytes;
  }
  std::ranges::fill(out.subspan(filled), std::byte{0});
}

void EncodedHome::decode_frame(const Frame& frame, std::uint64_t offset_bytes,
                               std::span<std::byte> out) const {
  const FrameView& view = frame.view;
  std::vector<std::byte> whole;  // of a chunk that is not wanted whole
  // All chunks but the last decode to as much.
  auto chunk = static_cast<std::uint32_t>(offset_bytes / view.decoded_bytes(0));
  for (std::uint64_t done = 0; done < out.size(); ++chunk) {
    const std::uint64_t skip = offset_bytes + done - view.decoded_offset(chunk);
    const std::uint64_t chunk_bytes = view.decoded_bytes(chunk);
    const std::uint64_t size = std::min<std::uint64_t>(chunk_bytes - skip, out.size() - done);
    const bool direct = size == chunk_bytes;
    if (!direct) whole.resize(chunk_bytes);
    const auto target = direct ? out.subspan(done, size) : std::span(whole);
    if (const auto fault = decode_chunk(view, chunk, target)) {
      throw frame_error(*fault, name_, "", static_cast<std::uint64_t>(&frame - frames_.data()));
    }
    if (!direct) std::memcpy(out.data() + done, whole.data() + skip, size);
    done += size;
  }
}

const EncodedHome* EncodedHome::of(const Reader& reader) noexcept {
  return dynamic_cast<const EncodedHome*>(&reader);
}

}  // namespace tensorstream

#include "engine/staged_reader.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>

#include "codec/device_decoder.h"
#include "codec/frame_format.h"
#include "engine/decode_ring.h"
#include "engine/load.h"
#include "platform/mapping.h"

namespace tensorstream {
namespace {

/// Before the frames that a piece has: room for the table that makes a batch of them.
constexpr std::uint64_t kTableRoomBytes = kMostStagedFrames * sizeof(BatchedFrame);

/// Extents that one reader has one behind the other.
struct Run {
  std::span<const StagedExtent> extents;
  std::uint64_t size_bytes = 0;
};

Run first_run(std::span<const StagedExtent> extents) {
  Run run{extents.first(1), extents[0].target.size()};
  if (extents[0].frames) return run;
  for (const StagedExtent& next : extents.subspan(1)) {
    const bool follows = !next.frames && next.reader == extents[0].reader &&
                         next.offset_bytes == extents[0].offset_bytes + run.size_bytes;
    if (!follows) break;
    run.extents = extents.first(run.extents.size() + 1);
    run.size_bytes += next.target.size();
  }
  return run;
}

/// What of `extents` lies in the read.
std::vector<StagedRead::Part> parts_in(const StagedRead& read,
                                       std::span<const StagedExtent> extents) {
  std::vector<StagedRead::Part> parts;
  const std::uint64_t end = read.offset_bytes + read.size_bytes;
  for (const StagedExtent& extent : extents) {
    const std::uint64_t from = std::max(read.offset_bytes, extent.offset_bytes);
    const std::uint64_t to = std::min(end, extent.offset_bytes + extent.target.size());
    if (from >= to) continue;
    parts.push_back(
        {from - read.offset_bytes, extent.target.subspan(from - extent.offset_bytes, to - from)});
  }
  return parts;
}

}  // namespace

std::vector<StagedRead> cut_for_staging(std::vector<StagedExtent> extents,
                                        std::uint64_t piece_bytes) {
  std::vector<const Reader*> readers;  // in the order in which they are first met
  for (const Tier tier : {Tier::kDisk, Tier::kRam}) {
    for (const StagedExtent& extent : extents) {
      if (extent.reader->tier() == tier) readers.push_back(extent.reader.get());
    }
  }
  const auto rank = [&readers](const StagedExtent& extent) {
    const auto first = std::ranges::find(readers, extent.reader.get());
    return std::pair(first - readers.begin(), extent.offset_bytes);
  };
  std::ranges::stable_sort(extents, {}, rank);
  std::vector<StagedRead> reads;
  for (std::span<const StagedExtent> left = extents; !left.empty();) {
    const Run run = first_run(left);
    const std::shared_ptr<Reader>& reader = left[0].reader;
    const std::uint64_t begin = left[0].offset_bytes;
    for (std::uint64_t done = 0; done < run.size_bytes;) {
      const std::uint64_t shift = reader->best_shift(begin + done);
      std::uint64_t room = piece_bytes > shift ? piece_bytes - shift : piece_bytes;
      if (left[0].frames) room = run.size_bytes;
      StagedRead read{
          reader, begin + done, std::min(room, run.size_bytes - done), {}, left[0].frames};
      read.parts = parts_in(read, run.extents);
      done += read.size_bytes;
      reads.push_back(std::move(read));
    }
    left = left.subspan(run.extents.size());
  }
  return reads;
}

bool StagedReader::Begun::is_for(const StagedRead& read) const noexcept {
  return reader == read.reader && offset_bytes == read.offset_bytes &&
         size_bytes == read.size_bytes && has_frames == read.frames.has_value();
}

void StagedReader::send(Load& load, Stream& stream, std::span<const StagedRead> next) noexcept {
  const MutexLock lock(mutex_);
  try {
    if (load.reads_frames()) decoding_->begin();
    send_all(load.staged_reads(ring_.piece_bytes()), stream, next);
    if (load.reads_frames()) decoding_->join();
  } catch (...) {
    begun_.clear();
    load.fail(std::current_exception());
    if (load.reads_frames()) decoding_->drain();
  }
}

void StagedReader::send_all(std::span<const StagedRead> reads, Stream& stream,
                            std::span<const StagedRead> next) {
  std::size_t begun = begun_of(reads);
  for (std::size_t i = 0; i < begun; ++i) ahead_bytes_ += reads[i].moved_bytes();
  if (begun < reads.size()) keep_first(begun);  // guard: read-ahead-of-this-load
  for (std::size_t sent = 0; sent < reads.size(); ++sent) {
    while (begun < reads.size() && try_begin(reads[begun])) ++begun;
    if (begun == sent) begin(reads[begun++], ring_.take());
    Begun& front = begun_.front();
    front.pending.wait();  // guard: wait-for-staged-read
    if (front.has_frames) {
      decode(front, reads[sent]);
    } else {
      copy(front, reads[sent], stream);
    }
    begun_.pop_front();
    // RAM is read when it is used: it may be written to until then.
    const bool reads_ram = !reads.empty() && reads.back().reader->tier() == Tier::kRam;
    if (begun < reads.size() || reads_ram) continue;
    const std::size_t left = reads.size() - sent - 1;
    for (std::size_t i = begun_.size() - left; i < next.size() && try_begin_ahead(next[i]); ++i) {
    }
  }
}

// How many of the reads were begun, in their order and before all others.
std::size_t StagedReader::begun_of(std::span<const StagedRead> reads) const {
  std::size_t count = 0;
  while (count < reads.size() && count < begun_.size() && begun_[count].is_for(reads[count])) {
    ++count;
  }
  return count;
}

bool StagedReader::read_ahead(std::span<const StagedRead> next) noexcept {
  const MutexLock lock(mutex_);
  const std::size_t begun = begun_of(next);
  if (begun == next.size()) return false;
  keep_first(begun);
  return try_begin_ahead(next[begun]);
}

// A failure is left to the load that needs it.
bool StagedReader::try_begin_ahead(const StagedRead& read) noexcept {
  const std::size_t before = begun_.size();
  try {
    return try_begin(read);
  } catch (...) {
    keep_first(before);
    return false;
  }
}

void StagedReader::keep_first(std::size_t count) noexcept {
  while (begun_.size() > count) begun_.pop_back();
}

void StagedReader::drop() noexcept {
  const MutexLock lock(mutex_);
  begun_.clear();
}

bool StagedReader::try_begin(const StagedRead& read) {
  auto piece = ring_.try_take();
  if (!piece) return false;
  begin(read, std::move(*piece));
  return true;
}

void StagedReader::begin(const StagedRead& read, StagingRing::Piece piece) {
  std::span<std::byte> bytes;
  if (read.frames) {
    bytes = piece.bytes().subspan(kTableRoomBytes, read.frames->read_bytes);
  } else {
    const std::uint64_t shift = read.reader->best_shift(read.offset_bytes);
    const std::uint64_t room = piece.bytes().size() - read.size_bytes;
    bytes = piece.bytes().subspan(shift <= room ? shift : 0, read.size_bytes);
  }
  begun_.push_back({read.reader,
                    read.offset_bytes,
                    read.size_bytes,
                    read.frames.has_value(),
                    bytes,
                    std::move(piece),
                    {}});
  begun_.back().pending = read.frames ? read.reader->begin_frame_read(*read.frames, bytes)
                                      : read.reader->begin_read(read.offset_bytes, bytes);
}

std::uint64_t StagedReader::frame_room_bytes() const noexcept {
  if (decoding_ == nullptr) return 0;
  const std::uint64_t room = std::min(ring_.piece_bytes(), decoding_->batch_bytes());
  const std::uint64_t beside = kTableRoomBytes + 2 * page_size_bytes();
  return room - std::min(room, beside);
}

// The frames, which were verified, are a batch once a table lies before them.
void StagedReader::decode(Begun& begun, const StagedRead& read) {
  const std::span<std::byte> encoded =
      begun.bytes.subspan(read.frames->before_bytes, read.frames->stored_bytes);
  std::vector<BatchedFrame> table;
  std::uint64_t decoded_bytes = 0;
  for (std::uint64_t at = 0; at < encoded.size();) {
    table.push_back({at, decoded_bytes});
    decoded_bytes += std::min(kFrameBytes, read.size_bytes - decoded_bytes);
    at += FrameView::stated_bytes(encoded.subspan(at));
  }
  const std::span<const std::byte> entries = std::as_bytes(std::span(table));
  std::byte* const front = encoded.data() - entries.size();
  std::memcpy(front, entries.data(), entries.size());
  const std::span<const std::byte> batch(front, entries.size() + encoded.size());
  const std::span frames(reinterpret_cast<const BatchedFrame*>(front), table.size());
  const CodedCopy coded{batch, frames, {{0, table.size()}}, read.parts[0].target.data()};
  decoding_->decode(coded, [&](Stream& stream, std::byte* slot) {
    begun.piece.copy_to_device(stream, slot, batch);
  });
}

void StagedReader::copy(Begun& begun, const StagedRead& read, Stream& stream) {
  for (const StagedRead::Part& part : read.parts) {
    begun.piece.copy_to_device(stream, part.target.data(),
                               begun.bytes.subspan(part.offset_bytes, part.target.size()));
  }
}

}  // namespace tensorstream

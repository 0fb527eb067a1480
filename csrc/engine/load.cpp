#include "engine/load.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/units.h"
#include "codec/frame_format.h"
#include "engine/kept_frames.h"
#include "io/file_window.h"

namespace tensorstream {
namespace {

// Largest piece that one thread reads while others read the next: small enough that they end
// together, and far above the cost of a call.
constexpr std::uint64_t kSharedReadBytes = 2_MiB;

// Reads that one thread has begun and not waited for, where the reader goes on by itself.
constexpr std::size_t kReadsAhead = 8;

// Between two tensors that follow one another in a place there is less (GroupLayout), and between
// two that do not there is more.
constexpr std::uint64_t kGapBytes = kTensorAlignment + kCacheLineBytes - 1;

/// The next piece of an extent, from `done` on: what the reader decodes as one, and elsewhere all
/// but the first begin at a page of the file, so that a disk reads no block twice.
std::uint64_t shared_read_bytes(const BoundExtent& extent, std::uint64_t done) {
  const std::uint64_t best = extent.reader->best_read_bytes(extent.offset_bytes + done);
  if (best != 0) return std::min(best, extent.size_bytes - done);
  const std::uint64_t in_page = (extent.offset_bytes + done) % kGroupAlignment;
  return std::min(kSharedReadBytes - in_page, extent.size_bytes - done);
}

}  // namespace

std::span<const std::byte> Load::source_of(const BoundExtent& extent, std::uint64_t offset_bytes) {
  const Reader& reader = *extent.reader;
  const std::uint64_t left = extent.offset_bytes + extent.size_bytes - offset_bytes;
  if (is_pinned(reader)) {
    PinnedFile& file = *reader.pinned_file();
    if (!holds(file)) return {};
    return {file.address(offset_bytes),
            std::min(left, file.piece_end(offset_bytes) - offset_bytes)};
  }
  const std::byte* const address = reader.address(offset_bytes);
  if (address == nullptr) return {};
  if (how_ == Reads::kInPlace) return {address, left};
  return {address, std::min(left, reader.pinned_end(offset_bytes) - offset_bytes)};
}

bool Load::holds(PinnedFile& file) {
  const auto is_of_file = [&](const PinnedFile::Hold& hold) { return hold.is_of(file); };
  if (std::ranges::any_of(holds_, is_of_file)) return true;
  std::optional<PinnedFile::Hold> hold = file.try_hold();
  if (!hold) return false;
  holds_.push_back(std::move(*hold));
  is_held_ = true;
  return true;
}

std::optional<FrameSpan> Load::frames_at(const BoundExtent& extent, std::uint64_t done_bytes,
                                         const std::byte* target) const {
  const bool aligned = reinterpret_cast<std::uintptr_t>(target) % kFrameAlignment == 0;
  if (frame_room_bytes_ == 0 || !aligned) return std::nullopt;
  std::uint64_t most = extent.size_bytes - done_bytes;
  most = std::min(most, kMostStagedFrames * kFrameBytes);  // guard: frames-of-a-table
  return extent.reader->frames_at(extent.offset_bytes + done_bytes, most, frame_room_bytes_);
}

void Load::keep(const BoundExtent& extent) {
  extents_.push_back(extent);
  std::uint64_t moved = extent.size_bytes;
  if (how_ == Reads::kInPlace) {  // staged frames are counted as they are added
    const std::uint64_t frames = extent.reader->frame_bytes(extent.offset_bytes, moved);
    if (frames != 0) moved = frames;
  }
  (extent.reader->tier() == Tier::kRam ? ram_bytes_ : disk_bytes_) += moved;
  decoded_bytes_ += extent.size_bytes;
  crosses_link_ |= extent.size_bytes != 0;
}

void Load::add_read(Reader& reader, std::uint64_t offset_bytes, std::span<std::byte> target) {
  reads_.push_back({&reader, nullptr, offset_bytes, target});
  read_bytes_ += target.size();
  reads_to_device_ |= is_to_device(reader);
}

void Load::add_read(const BoundExtent& extent, std::byte* target) {
  keep(extent);
  for (std::uint64_t done = 0; done < extent.size_bytes;) {
    const std::uint64_t size = shared_read_bytes(extent, done);
    add_read(*extent.reader, extent.offset_bytes + done, {target + done, size});
    done += size;
  }
}

bool Load::bridge_gap(const BoundExtent& extent, const std::byte* target,
                      std::uint64_t piece_bytes) {
  if (how_ != Reads::kStaged || copies_.empty() || extent.size_bytes == 0) return false;
  const BoundExtent& before = extents_.back();
  const std::uint64_t end = before.offset_bytes + before.size_bytes;
  if (before.reader != extent.reader || extent.offset_bytes < end) return false;
  if (extent.offset_bytes - end >= kGapBytes) return false;
  Copy& copy = copies_.back();
  // Of the copy, if it ends where `before` does: its source tells.
  const std::uint64_t begin = end - copy.target.size();
  const std::uint64_t reached = extent.offset_bytes - begin;
  if (reached >= piece_bytes || copy.target.data() + reached != target) return false;
  const Reader& reader = *extent.reader;
  if (copy.source + reached != reader.address(extent.offset_bytes)) return false;
  if (reader.pinned_end(begin) <= extent.offset_bytes) return false;  // guard: one-registration
  copy.target = {copy.target.data(), reached};
  return true;
}

void Load::add(const BoundExtent& extent, std::byte* target, std::uint64_t piece_bytes) {
  bool joins = bridge_gap(extent, target, piece_bytes);
  keep(extent);
  for (std::uint64_t done = 0; done < extent.size_bytes;) {
    const std::uint64_t offset = extent.offset_bytes + done;
    const std::uint64_t taken = joins ? copies_.back().target.size() : 0;
    const std::span<const std::byte> source = source_of(extent, offset);
    std::uint64_t size = std::min<std::uint64_t>(source.size(), piece_bytes - taken);
    if (is_pinned(*extent.reader)) {
      disk_bytes_ -= size;
      ram_bytes_ += size;
    }
    if (joins) {
      copies_.back().target = {copies_.back().target.data(), taken + size};
      joins = false;
    } else if (size > 0) {
      copies_.push_back({source.data(), {target + done, size}});
    } else if (const auto frames = frames_at(extent, done, target + done)) {
      size = frames->decoded_bytes;
      add_read(*extent.reader, offset, {target + done, size});
      reads_.back().frames = frames;
      reads_frames_ = true;
      disk_bytes_ = disk_bytes_ - size + frames->stored_bytes;
    } else {
      const std::uint64_t left = extent.size_bytes - done;
      size = is_to_device(*extent.reader) ? left : std::min(piece_bytes, left);
      if (how_ == Reads::kInPlace) size = std::min(size, shared_read_bytes(extent, done));
      add_read(*extent.reader, offset, {target + done, size});
    }
    done += size;
  }
}

void Load::add_window(const BoundExtent& extent, const FileWindow& window) {
  keep(extent);
  for (std::uint64_t done = 0; done < extent.size_bytes; done += kSharedReadBytes) {
    const std::uint64_t size = std::min(kSharedReadBytes, extent.size_bytes - done);
    reads_.push_back({nullptr, &window, done, {window.data() + done, size}});
    read_bytes_ += size;
  }
}

void Load::add_frames(const EncodedHome& home, std::span<const BoundExtent> extents,
                      std::byte* target, KeptFrames* kept) {
  std::vector<std::uint64_t> wanted;  // where the tensors begin
  for (const BoundExtent& extent : extents) {
    extents_.push_back(extent);
    if (extent.size_bytes != 0) wanted.push_back(extent.offset_bytes);
  }
  std::size_t number = 0;
  for (std::size_t batch_number = 0; batch_number < home.batches().size(); ++batch_number) {
    const EncodedHome::Batch& batch = home.batches()[batch_number];
    CodedCopy copy{batch.bytes, batch.frames(), {}, target};
    std::uint64_t weights_bytes = 0;
    for (std::size_t i = 0; i < batch.frame_count; ++i, ++number) {
      const std::uint64_t tensor = home.frames()[number].tensor_offset;
      if (!std::ranges::binary_search(wanted, tensor)) continue;
      if (copy.runs.empty() || copy.runs.back().first + copy.runs.back().count != i) {
        copy.runs.push_back({i, 0});
      }
      ++copy.runs.back().count;
      weights_bytes += home.frames()[number].view.header().decoded_bytes;
    }
    if (copy.runs.empty()) continue;
    if (kept != nullptr) copy.kept = kept->place(home, batch_number);
    if (copy.kept != nullptr && copy.kept->there) {
      kept_decoded_bytes_ += weights_bytes;
    } else {
      ram_bytes_ += copy.bytes.size();
      decoded_bytes_ += weights_bytes;
      crosses_link_ = true;
    }
    coded_.push_back(std::move(copy));
  }
}

bool Load::stays() const noexcept {
  const auto kept = [](const CodedCopy& copy) { return copy.kept != nullptr; };
  return copies_.empty() && reads_.empty() && !coded_.empty() && std::ranges::all_of(coded_, kept);
}

bool Load::is_large() const noexcept { return read_bytes_ > kSharedReadBytes; }

PendingRead Load::Read::begin(Reads how) const {
  if (window != nullptr) {
    window->bring(offset_bytes, target.size());
    return {};
  }
  return how == Reads::kStaged ? reader->begin_device_read(offset_bytes, target)
                               : reader->begin_read(offset_bytes, target);
}

void Load::read() noexcept {
  std::array<PendingRead, kReadsAhead> begun;  // taken in turn
  std::size_t turn = 0;
  for (std::size_t index = next_++; index < reads_.size(); index = next_++) {
    const Read& piece = reads_[index];
    if (how_ == Reads::kStaged && !is_to_device(*piece.reader)) continue;
    try {
      PendingRead& place = begun[turn++ % begun.size()];
      place.wait();
      place = piece.begin(how_);
    } catch (...) {
      fail(std::current_exception());
    }
  }
  for (PendingRead& place : begun) {
    try {
      place.wait();  // guard: wait-for-begun-reads
    } catch (...) {
      fail(std::current_exception());
    }
  }
}

void Load::end_device_reads() {
  std::erase_if(extents_,
                [this](const BoundExtent& extent) { return is_to_device(*extent.reader); });
}

std::vector<StagedRead> Load::staged_reads(std::uint64_t piece_bytes) const {
  std::vector<StagedExtent> extents;
  extents.reserve(reads_.size());
  for (const Read& read : reads_) {
    if (is_to_device(*read.reader)) continue;
    extents.push_back(
        {read.reader->shared_from_this(), read.offset_bytes, read.target, read.frames});
  }
  return cut_for_staging(std::move(extents), piece_bytes);
}

void Load::end() noexcept {
  for (const PinnedFile::Hold& hold : holds_) {
    try {
      hold.check_unchanged();  // guard: pinned-file-unchanged-at-the-end
    } catch (...) {
      fail(std::current_exception());
    }
  }
  holds_.clear();
  extents_.clear();
  ended_ = Clock::now();
}

// acquire() raises it.
void Load::fail(std::exception_ptr error) noexcept {
  next_ = reads_.size();
  const MutexLock lock(mutex_);
  if (!error_) error_ = std::move(error);
}

std::exception_ptr Load::error() const {
  const MutexLock lock(mutex_);
  return error_;
}

}  // namespace tensorstream

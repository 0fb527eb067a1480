#include "memory/staging_ring.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <string>
#include <utility>

#include "base/log.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr std::string_view kPurpose = "a staging ring";

/// Pieces are whole pages, each a registration of its own, so that no copy meets a seam.
std::uint64_t checked_piece_bytes(const StagingRingOptions& options) {
  if (options.piece_bytes == 0 || options.pieces == 0) {
    throw ConfigError("a staging ring of " + std::to_string(options.pieces) + " pieces of " +
                      format_size(options.piece_bytes) +
                      " holds nothing; give more than 0 of both");
  }
  const auto padded = checked_add(options.piece_bytes, page_size_bytes() - 1);
  const std::uint64_t rounded = padded ? *padded & ~(page_size_bytes() - 1) : 0;
  if (rounded == 0 || !checked_mul(rounded, options.pieces)) {
    throw BudgetError("host memory: a staging ring of " + std::to_string(options.pieces) +
                          " pieces of " + format_size(options.piece_bytes) +
                          " is more than any system has; give less",
                      std::numeric_limits<std::uint64_t>::max(), 0);
  }
  return rounded;
}

}  // namespace

StagingRing::StagingRing(Device& device, const StagingRingOptions& options)
    : piece_bytes_(checked_piece_bytes(options)),
      memory_(device, piece_bytes_ * options.pieces, kPurpose,
              {.budget = options.budget, .piece_bytes = piece_bytes_}),
      slots_(options.pieces) {
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    slots_[i].bytes = memory_.bytes().subspan(i * piece_bytes_, piece_bytes_);
    slots_[i].copied = device.create_event();
    free_.push_back(&slots_[i]);  // never more than now, so that giving back takes no memory
  }
}

StagingRing::~StagingRing() { drain(); }

void StagingRing::drain() noexcept {
  for (Slot& slot : slots_) slot.drain();  // guard: ring-drained
}

StagingRing::Piece StagingRing::take() {
  Piece piece(*this, take_slot());
  piece.slot_->settle();  // guard: piece-reuse
  return piece;
}

std::optional<StagingRing::Piece> StagingRing::try_take() {
  const MutexLock lock(mutex_);
  if (free_.empty() || !free_.front()->is_settled()) return std::nullopt;  // guard: piece-at-once
  Slot& slot = *free_.front();
  slot.settle();
  free_.erase(free_.begin());
  slot.holder = std::this_thread::get_id();
  return Piece(*this, slot);
}

StagingRing::Slot& StagingRing::take_slot() {
  const std::thread::id self = std::this_thread::get_id();
  MutexLock lock(mutex_);
  if (std::ranges::find(slots_, self, &Slot::holder) != slots_.end()) {
    throw LeaseError(
        "a staging ring: the calling thread holds a piece already; give it back first");
  }
  while (free_.empty()) changed_.wait(lock);
  Slot& slot = *free_.front();
  free_.erase(free_.begin());
  slot.holder = self;
  return slot;
}

void StagingRing::give_back(Slot& slot) noexcept {
  const MutexLock lock(mutex_);
  slot.holder = {};
  free_.push_back(&slot);
  changed_.notify_one();
}

void StagingRing::Slot::settle() {
  if (stream == nullptr) return;
  if (untold) stream->synchronize();  // guard: untold-copy
  untold = false;
  copied->synchronize();
  stream = nullptr;
}

bool StagingRing::Slot::is_settled() const {
  return stream == nullptr || (!untold && copied->complete());
}

void StagingRing::Slot::drain() noexcept {
  try {
    settle();
    return;
  } catch (const Error& error) {
    log(LogLevel::kError, error.what());
  }
  try {
    stream->synchronize();
  } catch (const Error& error) {
    log(LogLevel::kError, error.what());  // a context that is lost copies nothing any more
  }
  stream = nullptr;
  untold = false;
}

StagingRing::Piece::Piece(Piece&& other) noexcept
    : ring_(std::exchange(other.ring_, nullptr)), slot_(std::exchange(other.slot_, nullptr)) {}

StagingRing::Piece& StagingRing::Piece::operator=(Piece&& other) noexcept {
  if (this == &other) return *this;
  give_back();
  ring_ = std::exchange(other.ring_, nullptr);
  slot_ = std::exchange(other.slot_, nullptr);
  return *this;
}

std::span<std::byte> StagingRing::Piece::bytes() const noexcept {
  return slot_ == nullptr ? std::span<std::byte>() : slot_->bytes;
}

void StagingRing::Piece::copy_to_device(Stream& stream, std::byte* target,
                                        std::span<const std::byte> source) {
  check_part(source);
  enqueue_in(stream, [&] { stream.copy_to_device(target, source.data(), source.size()); });
}

std::span<const std::byte> StagingRing::Piece::copy_to_host(Stream& stream, const std::byte* source,
                                                            std::uint64_t size_bytes) {
  check_part({bytes().data(), size_bytes});
  enqueue_in(stream, [&] { stream.copy_to_host(slot_->bytes.data(), source, size_bytes); });
  slot_->settle();  // guard: copied-to-host
  return bytes().first(size_bytes);
}

void StagingRing::Piece::check_part(std::span<const std::byte> part) const {
  const std::span<const std::byte> whole = bytes();
  const std::less_equal<const std::byte*> not_after;  // of any two pointers
  const bool begins_inside = slot_ != nullptr && not_after(whole.data(), part.data()) &&
                             not_after(part.data(), whole.data() + whole.size());
  if (begins_inside &&
      part.size() <= static_cast<std::uint64_t>(whole.data() + whole.size() - part.data())) {
    return;
  }
  // guard: piece-bounds
  throw LeaseError("a staging ring: a copy of " + std::to_string(part.size()) +
                   " bytes is not inside its piece of " + std::to_string(whole.size()) + " bytes");
  // end guard
}

template <typename Enqueue>
void StagingRing::Piece::enqueue_in(Stream& stream, const Enqueue& enqueue) {
  if (slot_->untold) slot_->settle();
  // An event tells the end of one stream's work.
  if (slot_->stream != nullptr && slot_->stream != &stream) {
    stream.wait(*slot_->copied);  // guard: piece-in-two-streams
  }
  slot_->stream = &stream;
  slot_->untold = true;
  enqueue();
  stream.record(*slot_->copied);
  slot_->untold = false;
}

void StagingRing::Piece::give_back() noexcept {
  if (slot_ == nullptr) return;
  ring_->give_back(*std::exchange(slot_, nullptr));
  ring_ = nullptr;
}

}  // namespace tensorstream

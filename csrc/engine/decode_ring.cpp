#include "engine/decode_ring.h"

#include <exception>
#include <string>
#include <utility>

#include "base/log.h"
#include "base/units.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

// One is copied to while the other is decoded from. Of the same bytes, three would be smaller, and
// their copies more.
constexpr std::size_t kSlots = 2;

std::uint64_t slot_bytes_for(std::uint64_t batch_bytes) {
  return align_up(batch_bytes, kTensorAlignment);
}

}  // namespace

DecodeRing::DecodeRing(Pool& pool, std::unique_ptr<DeviceDecoder> decoder,
                       std::uint64_t batch_bytes)
    : memory_(pool.allocate(size_bytes_for(batch_bytes), kGroupAlignment,
                            "the ring that coded weights are decoded from")),
      slot_bytes_(slot_bytes_for(batch_bytes)),
      decoder_(std::move(decoder)),
      slots_(kSlots),
      stream_(pool.device().create_stream()),
      begun_(pool.device().create_event()),
      kept_(pool.device().create_event()) {
  for (std::size_t i = 0; i < kSlots; ++i) {
    slots_[i].data = memory_.data() + i * slot_bytes_;
    slots_[i].stream = pool.device().create_stream();
    slots_[i].decoded = pool.device().create_event();
  }
  stream_->set_access(memory_.data(), memory_.size_bytes(), Access::kReadWrite);
  stream_->synchronize();
}

DecodeRing::~DecodeRing() {
  try {
    synchronize();
  } catch (const Error& error) {
    log(LogLevel::kError, error.what());  // a context that is lost decodes nothing any more
  }
}

std::uint64_t DecodeRing::size_bytes_for(std::uint64_t batch_bytes) noexcept {
  return align_up(kSlots * slot_bytes_for(batch_bytes), kGroupAlignment);
}

void DecodeRing::decode(Stream& copies, std::span<const CodedCopy> batches) {
  if (batches.empty()) return;
  try {
    begin();
    for (const CodedCopy& batch : batches) decode_batch(copies, batch);
    join();
  } catch (...) {
    const std::exception_ptr error = std::current_exception();
    drain();
    std::rethrow_exception(error);
  }
}

void DecodeRing::begin() {
  stream_->record(*begun_);
  ++loads_;
}

// Nobody else waits for what a load that failed left under way.
void DecodeRing::drain() noexcept {
  for (Slot& slot : slots_) {
    if (slot.joined) continue;
    try {
      slot.stream->synchronize();
    } catch (const Error& error) {
      log(LogLevel::kError, error.what());  // a context that is lost decodes nothing any more
    }
    slot.joined = true;
  }
}

void DecodeRing::decode_batch(Stream& copies, const CodedCopy& copy) {
  if (copy.kept != nullptr) {
    keep(copies, copy);
    decode_from(copy.kept->data, *stream_, copy);
    return;
  }
  decode(copy, [&](Stream& stream, std::byte* slot) {
    stream.copy_to_device(slot, copy.bytes.data(), copy.bytes.size());
  });
}

void DecodeRing::decode(const CodedCopy& copy,
                        const std::function<void(Stream&, std::byte*)>& copy_to) {
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % slots_.size();
  if (copy.bytes.size() > slot_bytes_) {
    throw LeaseError("a batch of " + std::to_string(copy.bytes.size()) +
                     " bytes does not fit a slot of " + std::to_string(slot_bytes_));
  }
  slot.joined = false;
  copy_to(*slot.stream, slot.data);
  if (slot.load != loads_) {  // guard: decode-after-beginning
    slot.stream->wait(*begun_);
    slot.load = loads_;
  }
  decode_from(slot.data, *slot.stream, copy);
  slot.stream->poison(slot.data, slot_bytes_);
}

void DecodeRing::join() {
  for (Slot& slot : slots_) {
    if (slot.joined) continue;
    slot.stream->record(*slot.decoded);
    stream_->wait(*slot.decoded);  // guard: load-after-decoding
    slot.joined = true;
  }
}

void DecodeRing::wait(const Event& event) {
  for (const Slot& slot : slots_) slot.stream->wait(event);
  stream_->wait(event);
}

void DecodeRing::synchronize() const {
  for (const Slot& slot : slots_) slot.stream->synchronize();
  stream_->synchronize();
}

void DecodeRing::decode_kept(Stream& stream, std::span<const CodedCopy> copies) {
  if (copies.empty()) return;
  std::vector<FrameRun> runs;
  for (const CodedCopy& copy : copies) add_runs(copy, copy.kept->data, runs);
  decoder_->decode(stream, runs, copies.front().target);
}

// Nothing decodes from it before it is there: no copy waits for that.
void DecodeRing::keep(Stream& copies, const CodedCopy& copy) {
  if (copy.kept->there) return;
  copies.set_access(copy.kept->data, copy.bytes.size(), Access::kReadWrite);
  copies.copy_to_device(copy.kept->data, copy.bytes.data(), copy.bytes.size());
  copies.record(*kept_);
  stream_->wait(*kept_);  // guard: decode-after-keeping
  copy.kept->there = true;
}

void DecodeRing::add_runs(const CodedCopy& copy, const std::byte* batch,
                          std::vector<FrameRun>& runs) {
  const std::byte* const encoded = batch + copy.frames.size_bytes();
  for (const CodedCopy::Run& run : copy.runs) {
    runs.push_back({copy.frames.subspan(run.first, run.count),
                    batch + run.first * sizeof(BatchedFrame), encoded});
  }
}

void DecodeRing::decode_from(const std::byte* batch, Stream& stream, const CodedCopy& copy) {
  std::vector<FrameRun> runs;
  add_runs(copy, batch, runs);
  decoder_->decode(stream, runs, copy.target);
}

}  // namespace tensorstream

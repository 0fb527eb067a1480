#include "engine/kept_frames.h"

#include "base/units.h"
#include "codec/frame_format.h"

namespace tensorstream {

KeptBatch* KeptFrames::place(const EncodedHome& home, std::size_t number) {
  if (batches_.empty()) {
    std::uint64_t used_bytes = 0;
    for (const EncodedHome::Batch& batch : home.batches()) {
      const std::uint64_t size_bytes = align_up(batch.bytes.size(), kFrameAlignment);
      const bool fits = size_bytes <= memory_.size_bytes() - used_bytes;
      batches_.push_back({fits ? memory_.data() + used_bytes : nullptr});
      if (fits) used_bytes += size_bytes;
    }
  }
  KeptBatch& batch = batches_[number];
  return batch.data == nullptr ? nullptr : &batch;
}

}  // namespace tensorstream

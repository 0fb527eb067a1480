// What the ring takes that coded weights are decoded from, where a budget has no more room for it.
#pragma once

#include <cstdint>

#include "engine/batch_choice.h"
#include "engine/decode_ring.h"
#include "tensorstream/engine.h"

namespace tensorstream {

inline std::uint64_t ring_bytes_of(const ModelSpec& model, const EngineOptions& options) {
  return DecodeRing::size_bytes_for(
      largest_batch_bytes(model.groups, model.tensors,
                          best_batch_bytes(model.groups, model.tensors, options.piece_bytes, 0)));
}

}  // namespace tensorstream

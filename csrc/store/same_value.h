// Whether a checkpoint that has a tied weight under several names says the same each time.
#pragma once

#include <span>

#include "store/checkpoint.h"

namespace tensorstream {

/// Raises ConfigError, naming two, where `tensors` of `checkpoint`, which a model has as one,
/// differ in type, shape or a byte: which of them is meant, nobody says. Reads them, in pieces,
/// where they are several. Raises IoError, and FormatError for damage in a packed file.
void check_same_value(const Checkpoint& checkpoint,
                      std::span<const CheckpointTensor* const> tensors);

}  // namespace tensorstream

// Whether weights in host memory are coded, and why.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "tensorstream/error.h"
#include "tensorstream/plan.h"

namespace tensorstream {

/// The level where nobody says another: the one that a device decodes fastest.
inline constexpr std::uint32_t kDefaultCompressionLevel = 1;

/// What was decided: a level, 0 for none, and a reason for people.
struct CompressionChoice {
  std::uint32_t level = 0;
  std::string reason;
};

/// What the choice of a level goes by where none was asked for.
struct CompressionFacts {
  /// The plans of the same groups and budget, without frames and with them; nothing for the second
  /// where the budget has no room for a ring to decode from.
  const Plan& plain;
  const std::optional<Plan>& coded;
  /// Bytes of the weights that would be encoded, and threads that would do it.
  std::uint64_t encoded_bytes = 0;
  /// Whether frames of streamed weights are there, in files.
  bool has_frames = false;
  unsigned processors = 1;
};

/// What is to be raised where a level is asked for on a device that is the host.
ConfigError no_use_of_level(std::uint32_t level, const std::string& device);

/// Coded where the model of time says that a pass gets shorter by it, and the wait for the homes is
/// none that a user would mind.
CompressionChoice choose_compression(const CompressionFacts& facts);

}  // namespace tensorstream

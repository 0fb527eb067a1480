#include "engine/compression_choice.h"

#include <array>
#include <cstddef>
#include <cstdio>

#include "base/units.h"

namespace tensorstream {
namespace {

// How much shorter a pass has to get where weights are to be encoded.
constexpr double kLeastGain = 0.05;
// Of one core at level 1, with the memory that it takes:
// docs/adr/0012-weights-at-home-are-coded.md.
constexpr double kEncodedBytesPerSecond = 1e9;
constexpr double kMostEncodingSeconds = 30;

std::string shown_seconds(double seconds) {
  std::array<char, 32> text{};
  const bool short_time = seconds < 1;
  const int length = std::snprintf(text.data(), text.size(), "%.3g %s",
                                   short_time ? 1000 * seconds : seconds, short_time ? "ms" : "s");
  return {text.data(), static_cast<std::size_t>(length)};
}

}  // namespace

ConfigError no_use_of_level(std::uint32_t level, const std::string& device) {
  return ConfigError("compression level " + std::to_string(level) + " has no use on device " +
                     device + ": its weights are used where they are; use auto or none");
}

CompressionChoice choose_compression(const CompressionFacts& facts) {
  if (facts.plain.streamed_bytes == 0) return {0, "nothing is streamed"};
  if (facts.encoded_bytes == 0 && !facts.has_frames)
    return {0, "no streamed weights are of a type that is coded"};
  if (!facts.coded) return {0, "the budget has no room for the ring that is decoded from"};
  const double encoding_seconds =
      static_cast<double>(facts.encoded_bytes) / (kEncodedBytesPerSecond * facts.processors);
  if (encoding_seconds > kMostEncodingSeconds) {
    return {0, "to encode " + format_size(facts.encoded_bytes) + " would take about " +
                   shown_seconds(encoding_seconds) + " on " + std::to_string(facts.processors) +
                   " processors"};
  }
  const double coded_seconds = facts.coded->predicted_seconds;
  const std::string times = "a pass is predicted to take " + shown_seconds(coded_seconds) +
                            " coded and " + shown_seconds(facts.plain.predicted_seconds) + " raw";
  const double least_gain = facts.encoded_bytes == 0 ? 0 : kLeastGain;
  if (coded_seconds > (1 - least_gain) * facts.plain.predicted_seconds) return {0, times};
  return {kDefaultCompressionLevel, times};
}

}  // namespace tensorstream

#include "store/sealed_text.h"

#include <cstddef>
#include <nlohmann/json.hpp>

#include "codec/checksum.h"
#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr std::size_t kDigits = 16;
constexpr std::string_view kHexadecimal = "0123456789abcdef";

/// Of `text` with zeros in the place of the digits.
std::string digits_for(std::string_view text, std::string_view start) {
  std::string zeroed(text);
  zeroed.replace(start.size(), kDigits, kDigits, '0');
  const std::uint64_t checksum = checksum_of(std::as_bytes(std::span(zeroed)));
  return checksums_text(std::span(&checksum, 1));
}

}  // namespace

std::string open_seal(std::string_view start) {
  return std::string(start) + std::string(kDigits, '0') + "\"";
}

void close_seal(std::string& text, std::string_view start) {
  text.replace(start.size(), kDigits, digits_for(text, start));
}

std::string seal_of(std::string_view text, std::string_view start) {
  return std::string(text.substr(start.size(), kDigits));
}

bool is_sealed(std::string_view text, std::string_view start) {
  if (!text.starts_with(start) || text.size() < start.size() + kDigits) return false;
  return seal_of(text, start) == digits_for(text, start);
}

std::string checksums_text(std::span<const std::uint64_t> checksums) {
  std::string text;
  text.reserve(checksums.size() * kDigits);
  for (const std::uint64_t checksum : checksums) {
    for (std::size_t digit = kDigits; digit-- > 0;) {
      text += kHexadecimal[(checksum >> (4 * digit)) & 0xFU];
    }
  }
  return text;
}

std::optional<std::vector<std::uint64_t>> checksums_from(std::string_view text) {
  if (text.size() % kDigits != 0) return std::nullopt;
  std::vector<std::uint64_t> checksums(text.size() / kDigits);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::size_t value = kHexadecimal.find(text[i]);
    if (value == std::string_view::npos) return std::nullopt;
    std::uint64_t& checksum = checksums[i / kDigits];
    checksum = checksum << 4U | value;
  }
  return checksums;
}

std::string json_string(const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    throw UnsupportedError("the name '" + shown(text) +
                           "' is not UTF-8, which JSON is; rename the file");
  }
}

}  // namespace tensorstream

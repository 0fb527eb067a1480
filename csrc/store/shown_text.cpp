#include "store/shown_text.h"

#include <cstddef>

namespace tensorstream {
namespace {

constexpr std::size_t kLongestShown = 200;
constexpr std::size_t kShownOfEachEnd = 90;

bool continues_a_character(char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; }

/// The bytes of the character that `text` begins with; 0 where it is not UTF-8.
std::size_t character_bytes(std::string_view text) {
  const auto first = static_cast<unsigned char>(text.front());
  if (first < 0x80U) return 1;
  if (first < 0xC2U || first > 0xF4U) return 0;
  const std::size_t size = first < 0xE0U ? 2 : first < 0xF0U ? 3 : 4;
  if (text.size() < size) return 0;
  for (std::size_t i = 1; i < size; ++i) {
    if (!continues_a_character(text[i])) return 0;
  }
  // Longer than needed, a surrogate, or past the last character.
  const auto second = static_cast<unsigned char>(text[1]);
  const bool wrong = (first == 0xE0U && second < 0xA0U) || (first == 0xEDU && second > 0x9FU) ||
                     (first == 0xF0U && second < 0x90U) || (first == 0xF4U && second > 0x8FU);
  return wrong ? 0 : size;
}

void append_escaped(std::string& result, std::string_view text) {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  while (!text.empty()) {
    const std::size_t size = character_bytes(text);
    const auto byte = static_cast<unsigned char>(text.front());
    if (size != 0 && byte >= 0x20U && byte != 0x7FU) {
      result += text.substr(0, size);
      text.remove_prefix(size);
      continue;
    }
    result += "\\x";
    result += kDigits[byte >> 4U];
    result += kDigits[byte & 0xFU];
    text.remove_prefix(1);
  }
}

}  // namespace

std::string shown(std::string_view text) {
  std::string result;
  if (text.size() <= kLongestShown) {
    append_escaped(result, text);
    return result;
  }
  std::size_t start_end = kShownOfEachEnd;
  while (start_end > 0 && continues_a_character(text[start_end])) --start_end;
  std::size_t end_start = text.size() - kShownOfEachEnd;
  while (end_start < text.size() && continues_a_character(text[end_start])) ++end_start;
  append_escaped(result, text.substr(0, start_end));
  result += "...";
  append_escaped(result, text.substr(end_start));
  return result;
}

}  // namespace tensorstream

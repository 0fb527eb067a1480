#include "store/shown_text.h"

#include <cstddef>

namespace tensorstream {
namespace {

constexpr std::size_t kLongestShown = 200;
constexpr std::size_t kShownOfEachEnd = 90;

bool continues_a_character(char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; }

void append_escaped(std::string& result, std::string_view text) {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20U && byte != 0x7FU) {
      result += c;
      continue;
    }
    result += "\\x";
    result += kDigits[byte >> 4U];
    result += kDigits[byte & 0xFU];
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

#include "base/units.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "tensorstream/error.h"

namespace tensorstream {
namespace {

struct Unit {
  std::string_view name;
  double bytes;
};

constexpr double kKi = 1024.0;
constexpr std::array kUnits = {
    Unit{"", 1},
    Unit{"b", 1},
    Unit{"kib", kKi},
    Unit{"mib", kKi * kKi},
    Unit{"gib", kKi * kKi * kKi},
    Unit{"tib", kKi * kKi * kKi * kKi},
    Unit{"k", kKi},
    Unit{"m", kKi * kKi},
    Unit{"g", kKi * kKi * kKi},
    Unit{"t", kKi * kKi * kKi * kKi},
    Unit{"kb", 1e3},
    Unit{"mb", 1e6},
    Unit{"gb", 1e9},
    Unit{"tb", 1e12},
};

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = (c >= 'A' && c <= 'Z') ? static_cast<char>(c - 'A' + 'a') : c;
  return result;
}

/// A message ends at a zero byte.
std::string without_zeros(std::string_view text) {
  std::string result(text);
  std::ranges::replace(result, '\0', '?');
  return result;
}

[[noreturn]] void reject(std::string_view text, std::string_view option, std::string_view why) {
  throw ConfigError(std::string(option) + ": '" + without_zeros(text) + "' is not a size: " +
                    std::string(why) + "; give bytes or text like \"4GiB\", \"500MB\", \"60%\"");
}

}  // namespace

std::uint64_t parse_size(std::string_view text, std::string_view option,
                         std::uint64_t whole_bytes) {
  const std::string_view body = trimmed(text);
  double number = 0;
  const auto [end, error] = std::from_chars(body.data(), body.data() + body.size(), number);
  if (error != std::errc() || !std::isfinite(number)) reject(text, option, "no number in front");
  const std::string unit = lower(trimmed(body.substr(static_cast<std::size_t>(end - body.data()))));

  double size = 0;
  if (unit == "%") {
    if (whole_bytes == 0) reject(text, option, "there is no whole to take a share of");
    if (number > 100) reject(text, option, "more than 100 %");
    size = number / 100.0 * static_cast<double>(whole_bytes);
  } else {
    const Unit* found = nullptr;
    for (const Unit& candidate : kUnits) {
      if (candidate.name == unit) found = &candidate;
    }
    if (found == nullptr) reject(text, option, "unknown unit '" + without_zeros(unit) + "'");
    size = number * found->bytes;
  }
  if (size < 1) reject(text, option, "it must be at least one byte");
  constexpr double kLargest = 9e18;
  if (size > kLargest) reject(text, option, "it is larger than any memory");
  return static_cast<std::uint64_t>(size);
}

std::string format_size(std::uint64_t size_bytes) {
  static constexpr std::array<const char*, 5> kNames = {"B", "KiB", "MiB", "GiB", "TiB"};
  if (size_bytes < 1_KiB) return std::to_string(size_bytes) + " B";
  auto value = static_cast<double>(size_bytes);
  std::size_t unit = 0;
  while (value >= kKi && unit + 1 < kNames.size()) {
    value /= kKi;
    ++unit;
  }
  std::array<char, 32> text{};
  const int digits = value < 10 ? 2 : value < 100 ? 1 : 0;
  std::snprintf(text.data(), text.size(), "%.*f %s", digits, value, kNames.at(unit));
  return text.data();
}

}  // namespace tensorstream

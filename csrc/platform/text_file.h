// Small text files of the system: /proc, /sys.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tensorstream {

/// The whole text of the file at `path`; nothing where it cannot be read.
std::optional<std::string> read_text_file(const std::string& path);

/// The number that `text` begins with, and nothing where it does not begin with one.
std::optional<std::uint64_t> leading_number(std::string_view text);

/// The number after `key` at the start of a line of `text` ("VmRSS:   123 kB"), and nothing where
/// no line has it.
std::optional<std::uint64_t> number_after(std::string_view text, std::string_view key);

}  // namespace tensorstream

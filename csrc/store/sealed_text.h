// JSON that begins with a checksum of itself, and checksums as text.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tensorstream {

/// What a sealed header of a packed file and a sealed index begin with; 16 digits follow.
inline constexpr std::string_view kSealedHeaderStart =
    R"({"__metadata__":{"tensorstream.checksum":")";
inline constexpr std::string_view kSealedIndexStart = R"({"metadata":{"tensorstream.checksum":")";

/// `start` and the place of the checksum, the closing quote included.
std::string open_seal(std::string_view start);
/// Fills in the checksum of `text`, which begins with open_seal(start).
void close_seal(std::string& text, std::string_view start);
/// The checksum that a sealed text holds, as it stands there.
std::string seal_of(std::string_view text, std::string_view start);
/// Whether `text` is as close_seal() left it.
bool is_sealed(std::string_view text, std::string_view start);

/// Each checksum as 16 hexadecimal digits, one behind the other.
std::string checksums_text(std::span<const std::uint64_t> checksums);
/// The reverse; nothing where `text` is anything else.
std::optional<std::vector<std::uint64_t>> checksums_from(std::string_view text);

/// `text` as a JSON string, in quotes. Raises UnsupportedError where it is not UTF-8.
std::string json_string(const std::string& text);

}  // namespace tensorstream

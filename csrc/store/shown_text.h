// Untrusted text in an error message.
#pragma once

#include <string>
#include <string_view>

namespace tensorstream {

/// `text` fit for a message: control characters and bytes that are not UTF-8 escaped, and a text
/// longer than 200 bytes cut to its start and end.
std::string shown(std::string_view text);

}  // namespace tensorstream

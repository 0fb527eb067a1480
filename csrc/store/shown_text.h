// Untrusted text in an error message.
#pragma once

#include <string>
#include <string_view>

namespace tensorstream {

/// `text` fit for a message: control characters escaped, and a text longer than 200 bytes cut to
/// its start and end. Text that is valid UTF-8 stays so.
std::string shown(std::string_view text);

}  // namespace tensorstream

// JSON as a series of events: nothing is kept but what the receiver keeps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tensorstream {

/// Receives the parts of a JSON text in their order. What a receiver raises ends the parse and
/// reaches the caller of parse_json().
class JsonReceiver {
 public:
  JsonReceiver() = default;
  JsonReceiver(const JsonReceiver&) = delete;
  JsonReceiver& operator=(const JsonReceiver&) = delete;
  virtual ~JsonReceiver() = default;

  virtual void begin_object() = 0;
  virtual void end_object() = 0;
  virtual void begin_array() = 0;
  virtual void end_array() = 0;
  virtual void key(std::string& name) = 0;
  virtual void string(std::string& value) = 0;
  /// A number written as an integer from 0 to 2^63 - 1.
  virtual void integer(std::uint64_t value) = 0;
  /// Any other scalar, in words: "null", "a boolean", "a negative number".
  virtual void other(std::string_view what) = 0;
};

/// Hands the parts of `text`, one JSON value in UTF-8, to `receiver`, without recursion. The offset
/// of the first byte that is not JSON, and nothing where all is.
std::optional<std::size_t> parse_json(std::string_view text, JsonReceiver& receiver);

}  // namespace tensorstream

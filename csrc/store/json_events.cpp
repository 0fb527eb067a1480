#include "store/json_events.h"

#include <limits>
#include <nlohmann/json.hpp>

namespace tensorstream {
namespace {

using Json = nlohmann::json;

class EventForwarder final : public nlohmann::json_sax<Json> {
 public:
  explicit EventForwarder(JsonReceiver& receiver) : receiver_(receiver) {}

  std::size_t read_bytes() const noexcept { return read_bytes_; }

  bool null() override { return other("null"); }
  bool boolean(bool) override { return other("a boolean"); }
  // Unsigned numbers have an event of their own: what comes here has a minus sign, -0 too.
  bool number_integer(number_integer_t) override { return other("a negative number"); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<number_unsigned_t>(std::numeric_limits<std::int64_t>::max())) {
      return other("a number over 2^63 - 1");
    }
    receiver_.integer(value);
    return true;
  }
  bool number_float(number_float_t, const string_t&) override {
    return other("a number that is fractional, has an exponent or is over 2^64 - 1");
  }
  bool string(string_t& value) override {
    receiver_.string(value);
    return true;
  }
  bool binary(binary_t&) override { return other("binary data"); }
  bool start_object(std::size_t) override {
    receiver_.begin_object();
    return true;
  }
  bool key(string_t& name) override {
    receiver_.key(name);
    return true;
  }
  bool end_object() override {
    receiver_.end_object();
    return true;
  }
  bool start_array(std::size_t) override {
    receiver_.begin_array();
    return true;
  }
  bool end_array() override {
    receiver_.end_array();
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const Json::exception&) override {
    read_bytes_ = position;
    return false;
  }

 private:
  bool other(std::string_view what) {
    receiver_.other(what);
    return true;
  }

  JsonReceiver& receiver_;
  std::size_t read_bytes_ = 0;
};

}  // namespace

std::optional<std::size_t> parse_json(std::string_view text, JsonReceiver& receiver) {
  // nlohmann-json (3.11) takes a NUL for the end of the text and would not see what follows it.
  const std::size_t nul = text.find('\0');
  if (nul != std::string_view::npos) return nul;

  EventForwarder forwarder(receiver);
  if (Json::sax_parse(text.begin(), text.end(), &forwarder)) return std::nullopt;
  const std::size_t read = forwarder.read_bytes();
  return read == 0 ? 0 : read - 1;
}

}  // namespace tensorstream

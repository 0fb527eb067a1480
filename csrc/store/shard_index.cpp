#include "store/shard_index.h"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <set>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "platform/file.h"
#include "store/json_events.h"
#include "store/relative_path.h"
#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr std::size_t kDeepest = 32;

class IndexReceiver final : public JsonReceiver {
 public:
  explicit IndexReceiver(const std::string& path) : path_(path) {}

  ShardIndex take();

  void begin_object() override;
  void end_object() override { close(); }
  void begin_array() override;
  void end_array() override { close(); }
  void key(std::string& name) override;
  void string(std::string& value) override;
  void integer(std::uint64_t) override { refuse("a number"); }
  void other(std::string_view what) override { refuse(what); }

 private:
  enum class Part { kMap, kElsewhere };

  [[noreturn]] void fail(const std::string& tensor, const std::string& rule) const {
    throw FormatError(path_, shown(tensor), rule);
  }
  bool at_map() const noexcept { return open_keys_.size() == 1 && part_ == Part::kMap; }
  bool in_map() const noexcept { return open_keys_.size() == 2 && part_ == Part::kMap; }
  /// Raises where a value that is no string, `found`, stands where the format knows better.
  void refuse(std::string_view found) const;
  void open();
  void close() { open_keys_.pop_back(); }
  std::string checked_shard(const std::string& shard) const;

  const std::string& path_;
  ShardIndex index_;
  bool has_map_ = false;
  /// Of each object that is open, its keys so far; an array's stay empty.
  std::vector<std::set<std::string, std::less<>>> open_keys_;
  Part part_ = Part::kElsewhere;
  std::string tensor_;
};

void IndexReceiver::refuse(std::string_view found) const {
  const std::string what(found);
  if (open_keys_.empty()) fail("", "index: it is " + what + ", not an object");
  if (at_map()) fail("", "weight_map: it is " + what + ", not an object");
  if (in_map()) fail(tensor_, "weight_map: its file is " + what + ", not a string");
}

void IndexReceiver::open() {
  if (open_keys_.size() == kDeepest) {
    fail("", "index: it is nested deeper than " + std::to_string(kDeepest) + " levels");
  }
  open_keys_.emplace_back();
}

void IndexReceiver::begin_object() {
  if (in_map()) refuse("an object");
  if (at_map()) has_map_ = true;
  open();
}

void IndexReceiver::begin_array() {
  refuse("an array");
  open();
}

void IndexReceiver::key(std::string& name) {
  if (!open_keys_.back().insert(name).second) {
    fail("", "duplicate key: the index has '" + shown(name) + "' twice in one object");
  }
  if (open_keys_.size() == 1) part_ = name == "weight_map" ? Part::kMap : Part::kElsewhere;
  if (!in_map()) return;
  if (name.empty()) fail("", "tensor name: a tensor has an empty name");
  if (name.find('\0') != std::string::npos) fail(name, "tensor name: holds a NUL character");
  tensor_ = std::move(name);
}

void IndexReceiver::string(std::string& value) {
  if (in_map()) {
    index_.emplace(tensor_, checked_shard(value));
    return;
  }
  refuse("a string");
}

std::string IndexReceiver::checked_shard(const std::string& shard) const {
  if (const auto fault = relative_path_fault(shard)) {
    fail(tensor_, "shard path: '" + shown(shard) + "' " + *fault);
  }
  if (!shard.ends_with(".safetensors")) {
    throw UnsupportedError("'" + path_ + "' puts tensor '" + shown(tensor_) + "' in '" +
                           shown(shard) +
                           "', which is no .safetensors file; convert the checkpoint to "
                           "safetensors (save_pretrained of transformers writes it)");
  }
  return std::filesystem::path(shard).lexically_normal().string();
}

ShardIndex IndexReceiver::take() {
  if (!has_map_) fail("", "weight_map: the index has none; is this the index of a checkpoint?");
  if (index_.empty()) fail("", "weight_map: it names no tensor");
  return std::move(index_);
}

}  // namespace

ShardIndex read_shard_index(const std::string& path) {
  const File file = File::open_for_reading(path);
  if (file.size_bytes() > kLargestIndexBytes) {
    throw FormatError(path, "",
                      "index size: " + std::to_string(file.size_bytes()) +
                          " bytes are over the limit of " + std::to_string(kLargestIndexBytes));
  }
  std::string text(file.size_bytes(), '\0');
  file.read_exact(0, std::as_writable_bytes(std::span(text)));
  IndexReceiver receiver(path);
  if (const auto fault = parse_json(text, receiver)) {
    throw FormatError(path, "",
                      "json: the index is not JSON in UTF-8 at its byte " + std::to_string(*fault));
  }
  return receiver.take();
}

}  // namespace tensorstream

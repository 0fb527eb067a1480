#include "store/packed_index.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <utility>

#include "platform/file.h"
#include "store/relative_path.h"
#include "store/sealed_text.h"
#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::string_view kPackedStart = "packed-";
constexpr std::string_view kVersion = "1";

[[noreturn]] void fail(const std::string& path, const std::string& rule) {
  throw FormatError(path, "", "packed index: " + rule);
}

std::string read_text(const std::string& path) {
  const File file = File::open_for_reading(path);
  if (file.size_bytes() > kLargestIndexBytes) {
    fail(path, std::to_string(file.size_bytes()) + " bytes are more than an index may have");
  }
  std::string text(file.size_bytes(), '\0');
  file.read_exact(0, std::as_writable_bytes(std::span(text)));
  return text;
}

std::string string_of(const std::string& path, const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) {
    fail(path, "its metadata has no text '" + std::string(key) + "'");
  }
  return found->get<std::string>();
}

void check_path(const std::string& path, const std::string& name) {
  if (const auto fault = relative_path_fault(name)) {
    fail(path, "the path '" + shown(name) + "' " + *fault);
  }
}

const Json& object_of(const std::string& path, const Json& metadata, const char* key) {
  const auto found = metadata.find(key);
  if (found == metadata.end() || !found->is_object()) {
    fail(path, "its metadata has no object '" + std::string(key) + "'");
  }
  return *found;
}

std::map<std::string, std::string> seals_of(const std::string& path, const Json& metadata) {
  const Json& shards = object_of(path, metadata, "tensorstream.shards");
  std::map<std::string, std::string> seals;
  for (const auto& [shard, seal] : shards.items()) {
    seals.emplace(shard, string_of(path, shards, shard.c_str()));
  }
  return seals;
}

std::vector<CarriedFile> carried_of(const std::string& path, const Json& metadata) {
  std::vector<CarriedFile> carried;
  for (const auto& [name, entry] : object_of(path, metadata, "tensorstream.carried").items()) {
    check_path(path, name);
    const auto checksums = checksums_from(string_of(path, entry, "checksums"));
    const auto size = entry.find("size_bytes");
    if (!checksums || size == entry.end() || !size->is_number_unsigned()) {
      fail(path, "the file '" + shown(name) + "' has no sound size and checksums");
    }
    carried.push_back({name, size->get<std::uint64_t>(), *checksums});
  }
  return carried;
}

}  // namespace

std::string packed_name(const std::string& shard) {
  const fs::path path(shard);
  return (path.parent_path() / (std::string(kPackedStart) + path.filename().string())).string();
}

std::optional<std::string> unpacked_name(const std::string& packed_shard) {
  const fs::path path(packed_shard);
  const std::string name = path.filename().string();
  if (!name.starts_with(kPackedStart)) return std::nullopt;
  return (path.parent_path() / name.substr(kPackedStart.size())).string();
}

std::string packed_index_text(const PackedIndex& index) {
  std::string text = open_seal(kSealedIndexStart) + R"(,"tensorstream.version":")" +
                     std::string(kVersion) + R"(","total_size":)" +
                     std::to_string(index.total_bytes);
  if (index.original) {
    text += R"(,"tensorstream.index_name":)" + json_string(index.original->name) +
            R"(,"tensorstream.index":)" + json_string(index.original->text);
  }
  std::string carried;
  for (const CarriedFile& file : index.carried) {
    if (!carried.empty()) carried += ",";
    carried += json_string(file.name) + R"(:{"size_bytes":)" + std::to_string(file.size_bytes) +
               R"(,"checksums":")" + checksums_text(file.checksums) + "\"}";
  }
  std::string stored;
  for (const auto& [name, shard] : index.stored) {
    if (!stored.empty()) stored += ",";
    stored += "\n" + json_string(name) + ":" + json_string(shard);
  }
  std::string seals;
  for (const auto& [shard, seal] : index.seals) {
    if (!seals.empty()) seals += ",";
    seals += json_string(shard) + ":\"" + seal + "\"";
  }
  text += R"(,"tensorstream.shards":{)" + seals + "}";
  text += R"(,"tensorstream.carried":{)" + carried + "}},\n\"weight_map\":{" + stored + "\n}}\n";
  close_seal(text, kSealedIndexStart);
  return text;
}

PackedIndex read_packed_index(const std::string& path) {
  const std::string text = read_text(path);
  if (!is_sealed(text, kSealedIndexStart)) {  // guard: packed-index-sealed
    fail(path,
         "its checksum is not that of its bytes; the file is damaged, or not one that "
         "tensorstream.pack wrote");
  }
  // Checks what any index must be: no key twice, no deep nesting, sound paths.
  PackedIndex index;
  index.stored = read_shard_index(path);
  const Json parsed = Json::parse(text);
  const Json& metadata = parsed.at("metadata");
  if (const std::string version = string_of(path, metadata, "tensorstream.version");
      version != kVersion) {
    throw UnsupportedError("'" + path + "' has version '" + shown(version) +
                           "' of the packed format, and this TensorStream reads version " +
                           std::string(kVersion) + "; upgrade TensorStream");
  }
  if (metadata.contains("tensorstream.index")) {
    index.original = {string_of(path, metadata, "tensorstream.index_name"),
                      string_of(path, metadata, "tensorstream.index")};
    check_path(path, index.original->name);
  }
  for (const auto& [tensor, shard] : index.stored) {
    if (!unpacked_name(shard)) {
      throw FormatError(path, shown(tensor),
                        "packed index: no packed file is called '" + shown(shard) + "'");
    }
  }
  index.seals = seals_of(path, metadata);
  index.carried = carried_of(path, metadata);
  return index;
}

}  // namespace tensorstream

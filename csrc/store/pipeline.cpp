#include "store/pipeline.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <system_error>

#include "platform/file.h"
#include "store/folder_bounds.h"
#include "store/relative_path.h"
#include "store/shard_index.h"
#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kIndexName = "model_index.json";

bool holds_tensors(const fs::path& folder) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    std::error_code ignored;
    if (name.starts_with('.') || entry->is_directory(ignored)) continue;
    if (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")) return true;
  }
  return false;
}

Json read_index(const std::string& path) {
  const File file = File::open_for_reading(path);
  std::string text(std::min(file.size_bytes(), kLargestIndexBytes), '\0');
  file.read_exact(0, std::as_writable_bytes(std::span(text)));
  Json index = Json::parse(text, nullptr, false);
  if (!index.is_object()) throw FormatError(path, "", "pipeline: its index is no JSON object");
  return index;
}

}  // namespace

std::optional<std::vector<std::string>> models_of_pipeline(const std::string& folder) {
  const std::string path = (fs::path(folder) / kIndexName).string();
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) return std::nullopt;
  std::vector<std::string> models;
  const Json index = read_index(path);
  for (const auto& [name, part] : index.items()) {
    if (name.starts_with('_') || !part.is_array()) continue;
    if (name.find('/') != std::string::npos || relative_path_fault(name)) {
      throw FormatError(path, "", "pipeline: '" + shown(name) + "' is no folder of a model");
    }
    if (!holds_tensors(fs::path(folder) / name)) continue;
    check_stays_in_folder(folder, name);
    models.push_back(name);
  }
  std::ranges::sort(models);
  return models;
}

}  // namespace tensorstream

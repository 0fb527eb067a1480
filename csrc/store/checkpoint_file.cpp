#include "store/checkpoint_file.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <iterator>
#include <span>
#include <string_view>
#include <system_error>
#include <vector>

#include "store/folder_bounds.h"
#include "store/packed_index.h"
#include "store/shard_index.h"
#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;

// As transformers and diffusers name them. Beside them may be variants of the same weights.
constexpr std::array<std::string_view, 4> kUsual = {
    "model.safetensors.index.json", "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"};
constexpr std::array<std::string_view, 11> kOtherFormats = {
    ".bin", ".bin.index.json", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack",
    ".npz", ".onnx",           ".pt",   ".pth"};
constexpr std::size_t kListedOthers = 5;
constexpr std::string_view kHowToConvert =
    "convert it to safetensors: load it where it can be loaded, then save_pretrained of "
    "transformers or safetensors.torch.save_file";
// from_pretrained and plans take folders alone.
constexpr std::string_view kWhereFilesAreTaken =
    "to pack, unpack, verify or offload(checkpoint=), give the path of the one that is meant";

bool is_other_format(std::string_view name) {
  return std::any_of(kOtherFormats.begin(), kOtherFormats.end(),
                     [&](std::string_view ending) { return name.ends_with(ending); });
}

bool is_usual(std::string_view name) {
  return std::find(kUsual.begin(), kUsual.end(), name) != kUsual.end();
}

bool is_index(std::string_view name) {
  return name.ends_with(".index.json") && !name.ends_with(".bin.index.json") &&
         !name.ends_with(".h5.index.json") && !name.ends_with(".msgpack.index.json");
}

/// "model.safetensors.index.fp16.json", as transformers and diffusers name it.
bool is_index_of_variant(std::string_view name) {
  return name.find(".safetensors.index.") != std::string_view::npos && name.ends_with(".json");
}

std::string quoted_list(std::span<const std::string> names) {
  std::string text;
  for (const std::string& name : names) {
    if (!text.empty()) text += ", ";
    text += "'" + shown(name) + "'";
  }
  return text;
}

[[noreturn]] void raise_io(const std::string& path, const std::error_code& error) {
  throw IoError("cannot examine the checkpoint '" + path + "': " + error.message(), path, 0,
                error.value());
}

/// The names of the folder's files, sorted; hidden files and folders are left out.
std::vector<std::string> file_names(const std::string& folder) {
  std::error_code error;
  std::vector<std::string> names;
  fs::directory_iterator entry(folder, error);
  while (!error && entry != fs::directory_iterator()) {
    const std::string name = entry->path().filename().string();
    // A link to a file that is gone counts: opening it names what is missing.
    std::error_code ignored;
    if (!name.starts_with('.') && !entry->is_directory(ignored)) names.push_back(name);
    entry.increment(error);
  }
  if (error) raise_io(folder, error);
  std::sort(names.begin(), names.end());
  return names;
}

[[noreturn]] void raise_nothing_found(const std::string& folder,
                                      const std::vector<std::string>& names) {
  std::vector<std::string> others;
  std::copy_if(names.begin(), names.end(), std::back_inserter(others), is_other_format);
  if (others.empty()) {
    throw ConfigError("no model in '" + folder +
                      "': it holds no .safetensors file; give the folder that does");
  }
  const std::size_t listed = std::min(others.size(), kListedOthers);
  std::string holds = quoted_list(std::span(others).first(listed));
  if (listed < others.size()) {
    holds += " and " + std::to_string(others.size() - listed) + " more";
  }
  throw UnsupportedError("'" + folder + "' holds no safetensors but " + holds + "; " +
                         std::string(kHowToConvert));
}

/// The only one of `candidates`, which is not empty; several are refused by name.
CheckpointFile only_one(const std::string& folder, const std::vector<std::string>& candidates) {
  if (candidates.size() > 1) {
    throw ConfigError("'" + folder + "' holds several checkpoints: " + quoted_list(candidates) +
                      "; remove what an earlier save left, or, " +
                      std::string(kWhereFilesAreTaken));
  }
  const std::string& name = candidates.front();
  check_stays_in_folder(folder, name);
  return {.path = (fs::path(folder) / name).string(),
          .kind = is_index(name) || is_index_of_variant(name) ? CheckpointKind::kIndex
                                                              : CheckpointKind::kSingle};
}

/// Whether an index is what is left of an earlier save: none of its shards is there. transformers
/// removes them, and not the index, where it saves one file over several.
bool is_left_over(const std::string& index_path) {
  const fs::path folder = fs::path(index_path).parent_path();
  try {
    const ShardIndex index = read_shard_index(index_path);
    return std::ranges::none_of(index, [&](const auto& entry) {
      std::error_code ignored;
      return fs::symlink_status(folder / entry.second, ignored).type() != fs::file_type::not_found;
    });
  } catch (const Error&) {
    return false;  // which of the two is meant, the user has to say
  }
}

/// Whether an index names all of these files.
bool names_all(const std::string& index_path, const std::vector<std::string>& files) {
  try {
    const ShardIndex index = read_shard_index(index_path);
    return std::ranges::all_of(files, [&](const std::string& file) {
      return std::ranges::any_of(index, [&](const auto& entry) { return entry.second == file; });
    });
  } catch (const Error&) {
    return false;  // which are meant, the user has to say
  }
}

/// The files that plain loaders would take, but for an index that another save left.
std::vector<std::string> usual_files(const std::string& folder,
                                     std::span<const std::string> names) {
  std::vector<std::string> usual;
  std::ranges::copy_if(names, std::back_inserter(usual), is_usual);
  const auto index = std::ranges::find(usual, kUsual[0]);
  if (index == usual.end()) return usual;
  const bool other = usual.size() > 1 || std::ranges::binary_search(names, kPackedIndexName);
  if (other && is_left_over((fs::path(folder) / *index).string())) usual.erase(index);
  return usual;
}

/// Refuses plain weights beside packed ones, of which one are older: a save into a packed folder
/// leaves both.
void check_only_packed(const std::string& folder, std::span<const std::string> names,
                       std::vector<std::string> plain) {
  for (const std::string& name : names) {
    const auto original = unpacked_name(name);
    if (!original || !name.ends_with(".safetensors") || is_usual(*original)) continue;
    if (std::ranges::binary_search(names, *original)) plain.push_back(*original);
  }
  if (plain.empty()) return;
  throw ConfigError("'" + folder + "' holds a packed checkpoint and plain weights beside it, " +
                    quoted_list(plain) +
                    ": which of them are meant, it does not say. Remove the other: the plain "
                    "files, or '" +
                    kPackedIndexName + "' with the packed-*.safetensors; or, " +
                    std::string(kWhereFilesAreTaken));
}

CheckpointFile find_in_folder(const std::string& folder) {
  const std::vector<std::string> names = file_names(folder);
  std::vector<std::string> usual = usual_files(folder, names);
  std::vector<std::string> packed;
  std::vector<std::string> indexes;
  std::vector<std::string> singles;
  std::vector<std::string> of_variants;
  for (const std::string& name : names) {
    if (is_index_of_variant(name)) of_variants.push_back(name);
    if (name == kPackedIndexName) packed.push_back(name);
    if (is_index(name)) indexes.push_back(name);
    if (name.ends_with(".safetensors")) singles.push_back(name);
  }
  if (!packed.empty()) check_only_packed(folder, names, usual);  // guard: plain-beside-packed
  if (indexes.empty() && of_variants.size() == 1) {
    const std::string path = (fs::path(folder) / of_variants.front()).string();
    if (names_all(path, singles)) indexes = of_variants;  // guard: variant-alone
  }
  const bool indexed = !packed.empty() || !usual.empty() || !indexes.empty();
  const auto is_packed_file = [](const std::string& name) { return !!unpacked_name(name); };
  // guard: packed-shards-without-index
  if (!indexed && singles.size() > 1 && std::ranges::all_of(singles, is_packed_file)) {
    raise_packed_index_lost((fs::path(folder) / singles.front()).string());
  }
  // end guard
  for (const auto* candidates : {&packed, &usual, &indexes, &singles}) {
    if (!candidates->empty()) return only_one(folder, *candidates);
  }
  raise_nothing_found(folder, names);
}

}  // namespace

void raise_packed_index_lost(const std::string& file) {
  throw FormatError(file, "",
                    "packed index: the folder has no '" + std::string(kPackedIndexName) +
                        "', which says what belongs to it; fetch the checkpoint again, all of its "
                        "files, or give the path of this one");
}

CheckpointFile find_checkpoint_file(const std::string& path) {
  // The system would see the path up to the NUL, which is another one.
  if (path.find('\0') != std::string::npos) {
    throw ConfigError("the checkpoint's path '" + shown(path) + "' holds a NUL character");
  }
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) {
    throw IoError("there is no checkpoint at '" + path +
                      "': no such file or folder; give a .safetensors file, its index or a folder",
                  path, 0, ENOENT);
  }
  if (error) raise_io(path, error);
  if (status.type() == fs::file_type::directory) return find_in_folder(path);
  if (is_other_format(path)) {
    throw UnsupportedError("'" + path + "' is no safetensors file; " + std::string(kHowToConvert));
  }
  // Whatever else the file is called, its header is checked: caches name files by their hash.
  return {.path = path,
          .kind = path.ends_with(".json") ? CheckpointKind::kIndex : CheckpointKind::kSingle};
}

}  // namespace tensorstream

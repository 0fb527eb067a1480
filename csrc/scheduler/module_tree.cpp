#include "scheduler/module_tree.h"

#include <algorithm>
#include <cctype>
#include <map>

#include "tensorstream/error.h"

namespace tensorstream {
namespace {

// Lists that have a forward (Sequential) name their items by number, as containers do.
bool named_by_number(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  const std::string_view last = dot == std::string_view::npos ? name : name.substr(dot + 1);
  return !last.empty() && std::all_of(last.begin(), last.end(), [](char c) {
    return std::isdigit(static_cast<unsigned char>(c)) != 0;
  });
}

}  // namespace

ModuleTree::ModuleTree(std::span<const ModuleNode> modules, std::span<const TensorShape> tensors)
    : modules_(modules),
      tensors_(tensors),
      children_(modules.size()),
      holders_(tensors.size()),
      has_tensors_(modules.size(), false),
      holds_repeated_(modules.size(), false) {
  for (ModuleId module = 0; module < modules.size(); ++module) {
    const ModuleNode& node = modules[module];
    if (module == 0 ? node.parent != 0 : node.parent >= module) {
      throw ConfigError("module '" + node.name + "' (" + std::to_string(module) + ") has parent " +
                        std::to_string(node.parent) +
                        "; a parent comes before its children, the root is its own");
    }
    if (module != 0) children_[node.parent].push_back(module);
    for (const TensorId tensor : node.tensors) {
      if (tensor >= tensors.size()) {
        throw ConfigError("module '" + node.name + "' holds tensor " + std::to_string(tensor) +
                          ", but the model has " + std::to_string(tensors.size()) +
                          " tensors; list every tensor");
      }
      std::vector<ModuleId>& holders = holders_[tensor];
      if (holders.empty() || holders.back() != module) holders.push_back(module);
    }
  }
  for (std::size_t left = modules.size(); left-- > 0;) {
    if (!modules[left].tensors.empty()) has_tensors_[left] = true;
    if (left != 0 && has_tensors_[left]) has_tensors_[modules[left].parent] = true;
  }
  // Inside an item of a list or container, two named children of one type (self- and
  // cross-attention) are parts of the block, not blocks.
  std::vector<bool> inside_block(modules.size(), false);
  for (ModuleId module = 0; module < modules.size(); ++module) {
    const ModuleId parent = modules[module].parent;
    inside_block[module] = module != 0 && (inside_block[parent] || holds_repeated_[parent]);
    holds_repeated_[module] = repeats(module, inside_block[module]);
  }
  for (std::size_t left = modules.size(); left-- > 1;) {
    if (holds_repeated_[left]) holds_repeated_[modules[left].parent] = true;
  }
}

bool ModuleTree::repeats(ModuleId module, bool inside_block) const {
  std::map<std::uint32_t, int> same_type;
  for (const ModuleId child : children_[module]) {
    if (!has_tensors_[child]) continue;
    const bool block =
        modules_[module].container ||
        (is_composite(child) && (!inside_block || named_by_number(modules_[child].name)));
    if (block && ++same_type[modules_[child].type] >= 2) return true;
  }
  return false;
}

std::vector<ModuleId> ModuleTree::subtree(ModuleId module) const {
  std::vector<ModuleId> found{module};
  for (std::size_t i = 0; i < found.size(); ++i) {
    found.insert(found.end(), children_[found[i]].begin(), children_[found[i]].end());
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::uint64_t ModuleTree::own_bytes(ModuleId module) const {
  std::uint64_t bytes = 0;
  for (const TensorId tensor : modules_[module].tensors) bytes += tensors_[tensor].size_bytes;
  return bytes;
}

bool names(std::string_view entry, std::string_view name) {
  if (entry.empty() || !name.starts_with(entry)) return false;
  return name.size() == entry.size() || name[entry.size()] == '.';
}

}  // namespace tensorstream

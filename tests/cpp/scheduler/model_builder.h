// Builds module trees as PyTorch models have them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorstream/grouping.h"

namespace tensorstream {

/// A model under construction: modules are added depth first, under the names that their parents
/// give them.
class ModelBuilder {
 public:
  ModelBuilder() { modules_.push_back({"", type_id("Model"), 0, false, false, {}}); }

  ModuleId module(ModuleId parent, const std::string& name, const std::string& type) {
    const std::string prefix = modules_[parent].name;
    modules_.push_back({prefix.empty() ? name : prefix + "." + name,
                        type_id(type),
                        parent,
                        type == "ModuleList" || type == "ModuleDict",
                        type == "Embedding",
                        {}});
    return static_cast<ModuleId>(modules_.size() - 1);
  }

  TensorId tensor(ModuleId module, const std::string& name, std::uint64_t size_bytes) {
    const auto id = static_cast<TensorId>(tensors_.size());
    const std::string prefix = modules_[module].name;
    tensors_.push_back({prefix.empty() ? name : prefix + "." + name, size_bytes});
    modules_[module].tensors.push_back(id);
    return id;
  }

  /// A module without children and with one weight.
  ModuleId leaf(ModuleId parent, const std::string& name, const std::string& type,
                std::uint64_t size_bytes) {
    const ModuleId made = module(parent, name, type);
    tensor(made, "weight", size_bytes);
    return made;
  }

  ModuleId linear(ModuleId parent, const std::string& name, std::uint64_t size_bytes) {
    return leaf(parent, name, "Linear", size_bytes);
  }

  void tie(ModuleId module, TensorId tensor) { modules_[module].tensors.push_back(tensor); }
  TensorId weight(ModuleId module) const { return modules_[module].tensors.front(); }

  Grouping group(const GroupingOptions& options) const {
    return group_modules(modules_, tensors_, options);
  }

  const std::vector<ModuleNode>& modules() const { return modules_; }
  const std::vector<TensorShape>& tensors() const { return tensors_; }

 private:
  std::uint32_t type_id(const std::string& type) {
    return types_.try_emplace(type, static_cast<std::uint32_t>(types_.size())).first->second;
  }

  std::vector<ModuleNode> modules_;
  std::vector<TensorShape> tensors_;
  std::map<std::string, std::uint32_t> types_;
};

inline std::string residency_text(Residency residency) {
  if (residency == Residency::kRequired) return " required";
  return residency == Residency::kByRows ? " rows" : "";
}

/// "name", "name required" or "name rows" of each group, in order.
inline std::vector<std::string> describe(const Grouping& grouping) {
  std::vector<std::string> texts;
  for (const Group& group : grouping.groups) {
    texts.push_back(group.name + residency_text(group.residency));
  }
  return texts;
}

/// "module: group, group" of each hooked module, in order.
inline std::vector<std::string> describe_hooks(const ModelBuilder& model,
                                               const Grouping& grouping) {
  std::vector<std::string> texts;
  for (const HookedModule& hook : grouping.hooks) {
    std::string text = model.modules()[hook.module].name + ":";
    for (const GroupId group : hook.groups) text += " " + grouping.groups[group].name;
    texts.push_back(text);
  }
  return texts;
}

}  // namespace tensorstream

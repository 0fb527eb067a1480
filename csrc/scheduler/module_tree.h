// The module tree with what grouping asks of it: children, subtrees, holders of tensors.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensorstream/grouping.h"

namespace tensorstream {

/// Answers questions about the structure of a model. The modules and tensors outlive it.
class ModuleTree {
 public:
  /// Raises ConfigError where a parent does not come before its child or a module holds a tensor
  /// that there is not.
  ModuleTree(std::span<const ModuleNode> modules, std::span<const TensorShape> tensors);

  std::size_t size() const noexcept { return modules_.size(); }
  const ModuleNode& node(ModuleId module) const { return modules_[module]; }
  const std::vector<ModuleId>& children(ModuleId module) const { return children_[module]; }
  /// The modules that hold the tensor themselves, in the tree's order.
  const std::vector<ModuleId>& holders(TensorId tensor) const { return holders_[tensor]; }
  /// The module and all below it, in the tree's order.
  std::vector<ModuleId> subtree(ModuleId module) const;
  /// Bytes of the tensors that the module holds itself.
  std::uint64_t own_bytes(ModuleId module) const;
  /// True where the module or one below it holds a tensor.
  bool has_tensors(ModuleId module) const { return has_tensors_[module]; }
  /// True where repeated blocks lie below the module: a container, or a list that runs its items,
  /// with at least two children of one type that have tensors.
  bool holds_repeated_blocks(ModuleId module) const { return holds_repeated_[module]; }

 private:
  bool repeats(ModuleId module, bool inside_block) const;
  bool is_composite(ModuleId module) const { return !children_[module].empty(); }

  std::span<const ModuleNode> modules_;
  std::span<const TensorShape> tensors_;
  std::vector<std::vector<ModuleId>> children_;
  std::vector<std::vector<ModuleId>> holders_;
  std::vector<bool> has_tensors_;
  std::vector<bool> holds_repeated_;
};

/// True where `entry` is `name` or a prefix of it up to a dot.
bool names(std::string_view entry, std::string_view name);

}  // namespace tensorstream

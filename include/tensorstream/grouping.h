// Grouping: which weights are loaded together, found by the structure of the module tree. Layer:
// scheduler.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tensorstream/plan.h"

namespace tensorstream {

/// Index of a tensor in its model: each distinct piece of memory once, however many names it has.
using TensorId = std::uint32_t;
/// Index of a module in its tree, depth first, the root 0.
using ModuleId = std::uint32_t;

/// A parameter that may be streamed.
struct TensorShape {
  std::string name;
  std::uint64_t size_bytes = 0;
};

/// A module of the model. One used in several places is one node, under the first parent that has
/// it.
struct ModuleNode {
  /// Dotted name; empty for the root.
  std::string name;
  /// Equal for modules of the same class.
  std::uint32_t type = 0;
  /// The node's parent; the root's is itself. A parent comes before its children.
  ModuleId parent = 0;
  /// True for modules that only hold others and have no forward of their own worth hooking
  /// (ModuleList, ModuleDict).
  bool container = false;
  /// True for modules that look rows up in their one weight (Embedding).
  bool looks_up_rows = false;
  /// The tensors that the module holds itself, not its children's.
  std::vector<TensorId> tensors;
};

/// A module before whose forward some groups are acquired, and after which they are released.
struct HookedModule {
  ModuleId module = 0;
  std::vector<GroupId> groups;
};

struct Group {
  std::string name;
  std::vector<TensorId> tensors;
  Residency residency = Residency::kAny;
};

struct Grouping {
  /// In the order in which the tree names their modules.
  std::vector<Group> groups;
  /// A hooked module inside another hooked module never shares a group with it.
  std::vector<HookedModule> hooks;
};

struct GroupingOptions {
  /// Modules with more bytes than this are split into their children where they have any with
  /// tensors; 0: no limit.
  std::uint64_t largest_group_bytes = 0;
  /// Groups with fewer bytes than this are not worth a load: they are resident.
  std::uint64_t smallest_streamed_bytes = 0;
  /// Names of modules or tensors (exact, or a prefix up to a dot) that the user wants resident.
  std::vector<std::string> keep_resident;
};

/// Finds the groups of a model.
///
/// - Descending from the root, a module is one group, with all tensors below it, unless it is a
///   container, holds repeated blocks, or is larger than largest_group_bytes: then its children are
///   looked at each by itself. Repeated blocks are at least two children of one type that have
///   tensors: of a container; of a list with a forward (Sequential: children named by number) if
///   they have children themselves; and, outside any repeated block, of any module if they have.
/// - A tensor that such an opened module holds itself is needed during everything below it: a
///   resident group of its own, or, where it is larger than largest_group_bytes, a group that no
///   module acquires (read on demand when it is touched) unless a whole group below shares it.
/// - A module that looks rows up is a group of its own, kByRows and hooked by no one, also inside a
///   module that would else be one group, unless it is smaller than smallest_streamed_bytes.
/// - A tensor held by modules of several groups (a tie) is a group of its own, at the first module
///   that acquires it; every module that needs it whole does. If modules that look rows up are its
///   only holders, it is kByRows. A module is also split where a part of it holds such a tensor of
///   at least smallest_streamed_bytes, so that a unit seldom needs two places of the arena at once.
/// - A group smaller than smallest_streamed_bytes, or named in keep_resident, is kRequired and
///   hooked by no one; where only a part of a group is named, that part is split off. A name in
///   keep_resident that matches nothing is a ConfigError that names the nearest one.
/// - Groups carry the dotted name of their module, of their tensor where that is all of a group, or
///   "(model)".
Grouping group_modules(std::span<const ModuleNode> modules, std::span<const TensorShape> tensors,
                       const GroupingOptions& options);

}  // namespace tensorstream

#include "tensorstream/grouping.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/nearest_name.h"
#include "scheduler/module_tree.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

// The group of a model that is not split; its root has no name.
constexpr const char* kRootName = "(model)";

// What a module became on the way down from the root.
enum class Role {
  kInside,  // part of the unit above it
  kUnit,    // one group with what is below it; hooked
  kOpened,  // looked at child by child
  kRows,    // looks rows up: by itself, unhooked
};

// The groups a module tree falls into, found in two steps: roles for modules, then a group for each
// tensor.
class Grouper {
 public:
  Grouper(const ModuleTree& tree, std::span<const TensorShape> tensors,
          const GroupingOptions& options)
      : tree_(tree),
        tensors_(tensors),
        options_(options),
        role_(tree.size(), Role::kInside),
        unit_(tree.size(), 0) {}

  Grouping group() {
    if (tree_.size() == 0) return {};
    descend(0);
    for (TensorId tensor = 0; tensor < tensors_.size(); ++tensor) add(tensor);
    return assemble();
  }

 private:
  // A group to be, by its place in the tree's order: the module, then what distinguishes it there.
  struct Draft {
    std::string name;
    std::vector<TensorId> tensors;
    Residency residency = Residency::kAny;
    std::vector<ModuleId> users;
  };
  // Module, then the tensor for groups of a single one and kWhole for the module's own group.
  using Key = std::pair<ModuleId, std::int64_t>;
  static constexpr std::int64_t kWhole = -1;

  void descend(ModuleId module) {
    if (stands_for_rows(module)) {
      role_[module] = Role::kRows;
      unit_[module] = module;
    } else if (must_open(module)) {
      role_[module] = Role::kOpened;
      unit_[module] = module;
    } else {
      role_[module] = Role::kUnit;
      for (const ModuleId below : tree_.subtree(module)) {
        unit_[below] = module;
        if (!stands_for_rows(below)) continue;
        role_[below] = Role::kRows;
        unit_[below] = below;
      }
      return;
    }
    for (const ModuleId child : tree_.children(module)) descend(child);
  }

  bool stands_for_rows(ModuleId module) const {
    return tree_.node(module).looks_up_rows &&
           tree_.own_bytes(module) >= options_.smallest_streamed_bytes;
  }

  // A container's forward never runs, so nothing could acquire its group.
  bool must_open(ModuleId module) const {
    if (tree_.node(module).container || tree_.holds_repeated_blocks(module)) return true;
    const std::vector<ModuleId>& children = tree_.children(module);
    const bool parts = std::any_of(children.begin(), children.end(),
                                   [&](ModuleId child) { return tree_.has_tensors(child); });
    if (!parts) return false;
    if (ties_a_part_to_others(module)) return true;
    return options_.largest_group_bytes != 0 && unit_bytes(module) > options_.largest_group_bytes;
  }

  // A tied tensor is a group of its own. A unit that needed it besides its own group would hold two
  // places of the arena at once, so the part that holds it becomes the unit.
  bool ties_a_part_to_others(ModuleId module) const {
    const std::vector<ModuleId> subtree = tree_.subtree(module);
    const auto inside = [&](ModuleId holder) {
      return std::binary_search(subtree.begin(), subtree.end(), holder);
    };
    for (const ModuleId below : subtree) {
      if (below == module || stands_for_rows(below)) continue;
      for (const TensorId tensor : tree_.node(below).tensors) {
        if (tensors_[tensor].size_bytes < options_.smallest_streamed_bytes) continue;
        const std::vector<ModuleId>& holders = tree_.holders(tensor);
        const bool held_here = std::count(holders.begin(), holders.end(), module) != 0;
        if (!held_here && !std::all_of(holders.begin(), holders.end(), inside)) return true;
      }
    }
    return false;
  }

  // Bytes of the group that `module` would be: without row tables and tensors that others hold too.
  std::uint64_t unit_bytes(ModuleId module) const {
    const std::vector<ModuleId> subtree = tree_.subtree(module);
    std::set<TensorId> counted;
    std::uint64_t bytes = 0;
    for (const ModuleId below : subtree) {
      if (stands_for_rows(below)) continue;
      for (const TensorId tensor : tree_.node(below).tensors) {
        const std::vector<ModuleId>& holders = tree_.holders(tensor);
        const bool own = std::all_of(holders.begin(), holders.end(), [&](ModuleId holder) {
          return !stands_for_rows(holder) &&
                 std::binary_search(subtree.begin(), subtree.end(), holder);
        });
        if (own && counted.insert(tensor).second) bytes += tensors_[tensor].size_bytes;
      }
    }
    return bytes;
  }

  // The first entry of keep_resident that names the tensor or a module above it; their number where
  // none does.
  std::size_t kept_by(TensorId tensor) const {
    const auto kept = [&](const std::string& entry) {
      if (names(entry, tensors_[tensor].name)) return true;
      const std::vector<ModuleId>& holders = tree_.holders(tensor);
      return std::any_of(holders.begin(), holders.end(),
                         [&](ModuleId holder) { return names(entry, tree_.node(holder).name); });
    };
    const auto found =
        std::find_if(options_.keep_resident.begin(), options_.keep_resident.end(), kept);
    return static_cast<std::size_t>(found - options_.keep_resident.begin());
  }

  bool kept_resident(TensorId tensor) const {
    return kept_by(tensor) < options_.keep_resident.size();
  }

  void add(TensorId tensor) {
    const std::vector<ModuleId>& holders = tree_.holders(tensor);
    if (holders.empty()) {
      throw ConfigError("tensor '" + tensors_[tensor].name +
                        "' is held by no module; leave it out of the model's tensors");
    }
    std::set<ModuleId> homes;
    std::set<ModuleId> users;
    bool in_opened = false;
    for (const ModuleId holder : holders) {
      const ModuleId home = unit_[holder];
      homes.insert(home);
      if (role_[home] == Role::kUnit) users.insert(home);
      if (role_[home] == Role::kOpened) in_opened = true;
    }
    if (in_opened) {
      add_needed_throughout(*homes.begin(), tensor, users);
    } else if (users.empty()) {
      add_rows(*homes.begin(), tensor, homes.size() > 1);
    } else if (homes.size() > 1) {
      add_single(*users.begin(), tensor, Residency::kAny, users);
    } else {
      add_to_unit(*users.begin(), tensor);
    }
  }

  // Where it is too large to stay, the units that use it acquire it and the opened modules read it
  // on demand.
  void add_needed_throughout(ModuleId module, TensorId tensor, const std::set<ModuleId>& users) {
    const bool large = options_.largest_group_bytes != 0 &&
                       tensors_[tensor].size_bytes > options_.largest_group_bytes;
    if (!large) {
      add_single(module, tensor, Residency::kRequired, {});
    } else if (users.empty()) {
      add_single(module, tensor, Residency::kByRows, {});
    } else {
      add_single(*users.begin(), tensor, Residency::kAny, users);
    }
  }

  void add_single(ModuleId at, TensorId tensor, Residency residency,
                  const std::set<ModuleId>& users) {
    Draft& draft = drafts_[Key{at, tensor}];
    draft.name = tensors_[tensor].name;
    draft.tensors = {tensor};
    draft.residency = kept_resident(tensor) ? Residency::kRequired : residency;
    draft.users.assign(users.begin(), users.end());
  }

  void add_rows(ModuleId module, TensorId tensor, bool tied) {
    if (tied || kept_resident(tensor)) {
      add_single(module, tensor, Residency::kByRows, {});
      return;
    }
    Draft& draft = drafts_[Key{module, kWhole}];
    draft.name = tree_.node(module).name;
    draft.tensors.push_back(tensor);
    draft.residency = Residency::kByRows;
  }

  // Tensors of one unit that the user keeps resident part from those that may be streamed.
  void add_to_unit(ModuleId unit, TensorId tensor) {
    const std::size_t entry = kept_by(tensor);
    const std::string& unit_name = tree_.node(unit).name;
    const bool kept = entry < options_.keep_resident.size();
    Draft& draft = drafts_[Key{unit, kept ? kept_key(entry) : kWhole}];
    const bool part =
        kept && (unit_name.empty() || names(unit_name, options_.keep_resident[entry]));
    draft.name = part ? options_.keep_resident[entry] : unit_name;
    if (draft.name.empty()) draft.name = kRootName;
    draft.tensors.push_back(tensor);
    draft.residency = kept ? Residency::kRequired : Residency::kAny;
    draft.users = {unit};
  }

  std::int64_t kept_key(std::size_t entry) const {
    return static_cast<std::int64_t>(tensors_.size() + entry);
  }

  Grouping assemble() {
    Grouping grouping;
    std::map<ModuleId, std::vector<GroupId>> hooks;
    for (auto& [key, draft] : drafts_) {
      std::uint64_t bytes = 0;
      for (const TensorId tensor : draft.tensors) bytes += tensors_[tensor].size_bytes;
      if (bytes < options_.smallest_streamed_bytes) draft.residency = Residency::kRequired;
      const auto group = static_cast<GroupId>(grouping.groups.size());
      if (draft.residency == Residency::kAny) {
        for (const ModuleId user : draft.users) hooks[user].push_back(group);
      }
      grouping.groups.push_back(
          Group{std::move(draft.name), std::move(draft.tensors), draft.residency});
    }
    for (auto& [module, groups] : hooks) {
      grouping.hooks.push_back(HookedModule{module, std::move(groups)});
    }
    return grouping;
  }

  const ModuleTree& tree_;
  std::span<const TensorShape> tensors_;
  const GroupingOptions& options_;
  std::vector<Role> role_;
  // The unit, opened module or row table whose group a module's tensors go to.
  std::vector<ModuleId> unit_;
  std::map<Key, Draft> drafts_;
};

void check_kept_names(std::span<const ModuleNode> modules, std::span<const TensorShape> tensors,
                      std::span<const std::string> keep_resident) {
  std::vector<std::string> known;
  for (const ModuleNode& module : modules) {
    if (!module.name.empty()) known.push_back(module.name);
  }
  for (const TensorShape& tensor : tensors) known.push_back(tensor.name);
  for (const std::string& entry : keep_resident) {
    const bool found = std::any_of(known.begin(), known.end(),
                                   [&](const std::string& name) { return names(entry, name); });
    if (found) continue;
    throw ConfigError("keep_resident names '" + entry + "', but no module or tensor of the model " +
                      "is called so" + did_you_mean(entry, known) +
                      "; give the dotted name of a module or tensor");
  }
}

}  // namespace

Grouping group_modules(std::span<const ModuleNode> modules, std::span<const TensorShape> tensors,
                       const GroupingOptions& options) {
  const ModuleTree tree(modules, tensors);
  check_kept_names(modules, tensors, options.keep_resident);
  return Grouper(tree, tensors, options).group();
}

}  // namespace tensorstream

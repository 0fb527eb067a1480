// The module tree, groups and plans.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/units.h"
#include "bindings.h"
#include "engine/backend_choice.h"
#include "engine/disk_rate.h"
#include "engine/model_plan.h"
#include "platform/process_memory.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using namespace nb::literals;

ModuleId add_module(ModelTree& tree, std::string name, std::uint32_t type, ModuleId parent,
                    bool container, bool looks_up_rows) {
  ModuleNode node;
  node.name = std::move(name);
  node.type = type;
  node.parent = parent;
  node.container = container;
  node.looks_up_rows = looks_up_rows;
  tree.modules.push_back(std::move(node));
  return static_cast<ModuleId>(tree.modules.size() - 1);
}

TensorId add_tensor(ModelTree& tree, std::string name, const std::string& torch_name,
                    std::uint64_t size_bytes, std::uint32_t line_offset_bytes) {
  const auto dtype = dtype_from_torch_name(torch_name);
  if (!dtype) throw UnsupportedError("element type '" + torch_name + "' cannot be streamed");
  tree.tensors.push_back({std::move(name), *dtype, size_bytes, {}, line_offset_bytes});
  return static_cast<TensorId>(tree.tensors.size() - 1);
}

void init_sizes(nb::module_& module) {
  module.attr("CACHE_LINE_BYTES") = kCacheLineBytes;
  module.attr("LARGEST_BUDGET_BYTES") = kLargestBudgetBytes;
  module.def("default_budget_bytes", &default_budget_bytes, "available_bytes"_a,
             "The budget where the user gives none.");
  module.def(
      "is_dense",
      [](const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides) {
        return is_dense(shape, strides);
      },
      "shape"_a, "strides"_a, "Whether elements fill their bytes exactly once.");
}

void init_plan(nb::module_& module) {
  nb::enum_<Placement>(module, "Placement")
      .value("RESIDENT", Placement::kResident)
      .value("RESIDENT_CODED", Placement::kResidentCoded)
      .value("STREAMED", Placement::kStreamed)
      .value("ON_DEMAND", Placement::kOnDemand);
  nb::class_<Group>(module, "Group")
      .def_ro("name", &Group::name)
      .def_ro("tensors", &Group::tensors);
  nb::class_<HookedModule>(module, "HookedModule")
      .def_ro("module", &HookedModule::module)
      .def_ro("groups", &HookedModule::groups);
  nb::class_<Grouping>(module, "Grouping")
      .def_ro("groups", &Grouping::groups)
      .def_ro("hooks", &Grouping::hooks);
  nb::class_<Plan>(module, "Plan")
      .def_prop_ro("placements",
                   [](const Plan& self) {
                     std::vector<Placement> placements;
                     for (const GroupPlacement& group : self.groups)
                       placements.push_back(group.placement);
                     return placements;
                   })
      .def_prop_ro("from_disk",
                   [](const Plan& self) {
                     std::vector<bool> from_disk;
                     for (const GroupPlacement& group : self.groups)
                       from_disk.push_back(group.from_disk);
                     return from_disk;
                   })
      .def_prop_ro("homeless_groups",
                   [](const Plan& self) {
                     return std::ranges::count_if(self.groups, [](const GroupPlacement& group) {
                       return group.placement == Placement::kStreamed && !group.at_home;
                     });
                   })
      .def_ro("disk_bytes", &Plan::disk_bytes)
      .def_ro("home_bytes", &Plan::home_bytes)
      .def_ro("budget_bytes", &Plan::budget_bytes)
      .def_ro("resident_bytes", &Plan::resident_bytes)
      .def_ro("kept_bytes", &Plan::kept_bytes)
      .def_ro("kept_weights_bytes", &Plan::kept_weights_bytes)
      .def_ro("arena_bytes", &Plan::arena_bytes)
      .def_ro("streamed_bytes", &Plan::streamed_bytes)
      .def_ro("link_bytes", &Plan::link_bytes)
      .def_ro("ring_bytes", &Plan::ring_bytes)
      .def_ro("on_demand_bytes", &Plan::on_demand_bytes)
      .def_ro("smallest_budget_bytes", &Plan::smallest_budget_bytes)
      .def_ro("everything_fits_bytes", &Plan::everything_fits_bytes)
      .def_ro("exposed_loads", &Plan::exposed_loads)
      .def_ro("predicted_seconds", &Plan::predicted_seconds)
      .def_ro("bound", &Plan::bound);
  nb::class_<ModelPlan>(module, "ModelPlan")
      .def_ro("grouping", &ModelPlan::grouping)
      .def_ro("plan", &ModelPlan::plan);
}

/// What is known of the machine; nothing for what plans assume.
struct KnownRates {
  std::optional<double> link_bytes_per_second;
  std::optional<double> disk_bytes_per_second;
  std::optional<double> host_call_seconds;
};

ModelPlan plan_tree(const ModelTree& self, std::uint64_t budget_bytes, Prefetch prefetch,
                    ComputePlace place, const KnownRates& known,
                    std::optional<std::uint32_t> compression,
                    std::optional<std::uint64_t> ram_budget_bytes) {
  Rates rates;
  rates.loading = loading_of(resolve_prefetch(prefetch, place));
  rates.link_bytes_per_second = known.link_bytes_per_second.value_or(rates.link_bytes_per_second);
  rates.disk_bytes_per_second = known.disk_bytes_per_second.value_or(rates.disk_bytes_per_second);
  rates.host_call_seconds = known.host_call_seconds.value_or(rates.host_call_seconds);
  PlanOptions options{.place = place};
  if (place == ComputePlace::kAccelerator) {
    options.spared_bytes = spared_bytes(budget_bytes) + outside_bytes(budget_bytes);
    options.compression = compression;
    options.home_bytes = home_room(self, ram_budget_bytes, available_ram_bytes());
  }
  return plan_model(self, budget_bytes, rates, options);
}

void init_disk(nb::module_& module) {
  nb::class_<KnownRates>(module, "KnownRates")
      .def(nb::init<std::optional<double>, std::optional<double>, std::optional<double>>(),
           "link_bytes_per_second"_a.none() = nb::none(),
           "disk_bytes_per_second"_a.none() = nb::none(),
           "host_call_seconds"_a.none() = nb::none());
  nb::class_<BackendChoice>(module, "BackendChoice")
      .def_ro("backend", &BackendChoice::backend)
      .def_ro("reason", &BackendChoice::reason);
  nb::class_<RamRoom>(module, "RamRoom")
      .def(nb::init<std::uint64_t, std::uint64_t>(), "available_bytes"_a, "file_bytes"_a)
      .def_ro("available_bytes", &RamRoom::available_bytes)
      .def_ro("file_bytes", &RamRoom::file_bytes);
  module.def("ram_room", &ram_room, "RAM that is free for this process, and the page cache in it.");
  nb::class_<CachedFiles>(module, "CachedFiles")
      .def(nb::init<std::uint64_t, std::uint64_t>(), "file_bytes"_a, "cached_bytes"_a)
      .def_ro("file_bytes", &CachedFiles::file_bytes)
      .def_ro("cached_bytes", &CachedFiles::cached_bytes);
  module.def("cached_files", &cached_files, "paths"_a, Unlocked(),
             "What the page cache has of files.");
  module.def("choose_backend", &choose_backend, "plan"_a, "place"_a, "room"_a, "files"_a,
             "gpudirect"_a, "How files are read where nobody says it.");
  module.def(
      "measure_disk", &measure_disk, "path"_a, Unlocked(),
      "Bytes a second that a file is read at past the page cache; None where that is not to be "
      "had.");
}

std::vector<std::string> dtype_names(const ModelTree& tree, const std::vector<TensorId>& tensors) {
  std::vector<std::string> names;
  for (const TensorId tensor : tensors) {
    names.emplace_back(dtype_torch_name(tree.tensors.at(tensor).dtype));
  }
  return names;
}

void init_tree(nb::module_& module) {
  nb::class_<ModelTree>(module, "ModelTree")
      .def(nb::init<>())
      .def("add_module", &add_module, "name"_a, "type"_a, "parent"_a, "container"_a,
           "looks_up_rows"_a,
           "Adds a module, parents first; the first is the root. Returns its id.")
      .def("add_tensor", &add_tensor, "name"_a, "dtype"_a, "size_bytes"_a, "line_offset_bytes"_a,
           "Adds a tensor, which begins there within a cache line in the model's memory. Returns "
           "its "
           "id.")
      .def(
          "hold",
          [](ModelTree& self, ModuleId id, TensorId tensor) {
            self.modules.at(id).tensors.push_back(tensor);
          },
          "module"_a, "tensor"_a, "Says that a module holds a tensor itself.")
      .def(
          "add_extent",
          [](ModelTree& self, TensorId tensor, std::uint32_t source, std::uint64_t offset_bytes,
             std::uint64_t size_bytes) {
            self.tensors.at(tensor).extents.push_back({source, offset_bytes, size_bytes});
          },
          "tensor"_a, "source"_a, "offset_bytes"_a, "size_bytes"_a,
          "Appends a piece of a source to a tensor's bytes.")
      .def(
          "keep_resident",
          [](ModelTree& self, std::string name) { self.keep_resident.push_back(std::move(name)); },
          "name"_a, "Keeps a module or tensor resident in every plan.")
      .def(
          "add_fixed_bytes",
          [](ModelTree& self, std::uint64_t size_bytes) { self.fixed_bytes += size_bytes; },
          "size_bytes"_a, "Bytes that stay on the device whatever the plan.")
      .def("size_bytes", &ModelTree::size_bytes, "tensors"_a, "Bytes of some tensors.")
      .def("dtypes", &dtype_names, "tensors"_a, "Element types of some tensors, as torch has them.")
      .def_prop_ro("weights_bytes", &ModelTree::weights_bytes)
      .def_ro("fixed_bytes", &ModelTree::fixed_bytes)
      .def("group", &group_model, "The model's groups by structure alone.")
      .def(
          "note_frames",
          [](ModelTree& self, TensorId tensor, std::uint64_t size_bytes) {
            self.tensors.at(tensor).frame_bytes = size_bytes;
          },
          "tensor"_a, "size_bytes"_a,
          "Says about what a tensor's frames take in its file; 0 where it lies there as it is.")
      .def(
          "note_in_ram", [](ModelTree& self, TensorId tensor) { self.in_ram.push_back(tensor); },
          "tensor"_a, "Says that a tensor's bytes are in RAM, and in no file.")
      .def_rw("pinned_sources", &ModelTree::pinned_sources,
              "Which sources are files in RAM that the device copies from by itself.")
      .def("plan", &plan_tree, "budget_bytes"_a, "prefetch"_a, "place"_a, "known"_a = KnownRates(),
           "compression"_a.none() = 0, "ram_budget_bytes"_a.none() = nb::none(),
           "Groups and plans the model for a budget.");
}

}  // namespace

void init_planning(nb::module_& module) {
  init_sizes(module);
  init_plan(module);
  init_disk(module);
  init_tree(module);
}

}  // namespace tensorstream

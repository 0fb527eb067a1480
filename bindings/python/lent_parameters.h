// The parameters of a leased group: put on their places and parked again, at each use of a group.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bindings.h"
#include "tensorstream/engine.h"

namespace tensorstream {

/// What of torch's Python objects is used for that, looked up once.
struct ParameterTypes {
  /// `data` and `version` are descriptors of torch's base class of tensors; `mark` is the attribute
  /// of a parameter that holds its weight; `use_count` says how many holders the storage behind a
  /// handle has; `plainly` makes contexts in which torch looks for no `__torch_function__`;
  /// `address` is the method of tensors that gives where their bytes are.
  ParameterTypes(nb::type_object lent, nb::type_object parked, nb::object data, nb::object version,
                 nb::str mark, nb::object use_count, nb::object plainly, nb::object address);

  // Classes, descriptors and functions of modules: they hold nothing of a model.
  nb::type_object lent;
  nb::type_object parked;
  nb::object data;
  nb::object version;
  nb::str mark;
  nb::object use_count;
  nb::object plainly;
  nb::object enter_plainly;
  nb::object exit_plainly;
  nb::object address;
};

/// The parameters of one group that is leased at each use. Between uses they are parked without
/// bytes, for others share the place; where the group has its place for itself they are parked on
/// it, which costs less. Every list has one entry a parameter; every call holds the GIL.
class LentParameters {
 public:
  /// `weights` are what the parameters' marks hold; `poisons` what they have in the place of bytes.
  /// `wrappers` are tensors that some of the parameters are inner tensors of: tuples of a wrapper,
  /// its class while all of those are lent, its class while one is parked, and a list of them.
  LentParameters(const ParameterTypes& types, GroupId group, nb::list parameters, nb::list weights,
                 nb::list poisons, nb::list wrappers);

  /// Takes views on a place, which nobody else holds, and what tells that others do later: their
  /// storages, and the handles of these. `addresses` are the views'. Some views `lie_apart`: in
  /// memory that is no place, and which others may hold.
  void set_place(std::uint32_t place_number, bool stays, nb::list views, nb::list storages,
                 nb::list handles, nb::dict addresses, bool lie_apart);
  /// Makes parameters usable ones on the views. Returns how many: the one after those is not
  /// parked, and neither it nor what follows is changed. A parameter whose bytes somebody exchanged
  /// past torch's functions (`torch.Tensor.set_(parameter, ...)`) keeps those, as one that changed.
  std::size_t lend();
  /// Whether a lent parameter lies elsewhere than on its view.
  void note_exchanged(std::size_t position, bool is_exchanged);
  /// Positions of lent parameters that are of another version than when they were lent, lie
  /// elsewhere, or hold another weight, for which torch exchanged it. What a lent parameter is
  /// written through its `data` shows in its version.
  std::vector<std::size_t> changed() const;
  /// Parks lent parameters; `changed` are the positions of those that were changed.
  void park(const std::vector<std::size_t>& changed);
  /// Takes the bytes away from parked parameters that stay on a place: it is another's now.
  void leave_place();
  /// What parameters hold is not what set_place() gave, or is to be no more: it is called anew.
  void forget_place() noexcept {
    is_on_place_ = false;
    place_number_ = 0;
  }
  /// Positions of parked weights of whose bytes on the place somebody else holds a view.
  std::vector<std::size_t> escaped() const;
  /// Whether any of them is one whose cast autocast may keep: it keeps none of frozen parameters.
  bool may_be_cast() const;
  /// How many others hold the storage of a view: tensors, and Python's object of the storage.
  std::int64_t other_holders(std::size_t position) const {
    return holders(position) - users_.at(position) - (is_on_place_ ? 1 : 0);
  }

  GroupId group() const noexcept { return group_; }
  std::uint32_t place_number() const noexcept { return place_number_; }
  bool stays() const noexcept { return stays_; }
  bool lie_apart() const noexcept { return lie_apart_; }
  std::size_t size() const { return parameters_.size(); }
  const nb::dict& addresses() const noexcept { return addresses_; }

  std::uint32_t depth = 0;  // of leases, which nest
  bool hooked = false;      // autograd's hooks are pushed for them

 private:
  template <typename Visit>
  friend void visit_references(LentParameters& lent, const Visit& visit) {
    visit(lent.parameters_);
    visit(lent.weights_);
    visit(lent.poisons_);
    visit(lent.wrappers_);
    visit(lent.views_);
    visit(lent.storages_);
    visit(lent.addresses_);
  }

  std::int64_t holders(std::size_t position) const;
  void read_versions(std::vector<std::int64_t>& into) const;
  std::int64_t version(PyObject* parameter) const;
  std::vector<std::size_t> exchanged_bytes() const;
  void park_on(const nb::list* places) const;
  void set_classes_of_wrappers() const;
  std::vector<std::int64_t> versions_of_wrappers() const;
  void add_written_inner(std::vector<std::size_t>& changed) const;

  const ParameterTypes& types_;
  const GroupId group_;
  nb::list parameters_;
  nb::list weights_;
  nb::list poisons_;
  nb::list wrappers_;
  nb::list views_;
  nb::list storages_;
  nb::list handles_;
  std::vector<std::int64_t> users_;  // holders() when nobody else holds it
  nb::dict addresses_;
  std::vector<std::int64_t> versions_;          // when they were lent last, or parked with changes
  std::vector<std::size_t> exchanged_;          // since they were lent
  std::vector<std::int64_t> versions_before_;   // memory for lend(), used again
  std::vector<std::int64_t> wrapper_versions_;  // when they were lent last
  std::uint32_t place_number_ = 0;              // of the place that the views are on; 0 for none
  bool stays_ = false;                          // on its place between uses
  bool lie_apart_ = false;                      // some of the views
  bool is_on_place_ = false;
};

}  // namespace tensorstream

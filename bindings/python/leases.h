// Leases: the hot path of a model's hooks. What is rare it asks the orchestrator for.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "bindings.h"
#include "bound_engine.h"
#include "lent_parameters.h"
#include "saved_stack.h"
#include "session.h"

namespace tensorstream {

/// What of torch and of the device a lease calls.
struct LeaseFunctions {
  nb::object stream;                // gives the handle of the stream that calling code computes on
  nb::object prepare = nb::none();  // called before a lease is taken; or None
  nb::object settle = nb::none();   // called once it is; or None
  nb::object loans;                 // true where somebody may hold a weight's true value
  nb::object autocasts;             // whether autocast is on
  nb::object clear_casts;           // drops the casts that it keeps
  nb::object held_back;             // makes a context in which no handler of a signal runs
};

/// Leases groups of one model for the time of forwards, and lends their parameters. Every call
/// holds the GIL. Groups are Python's objects, of a class derived from LentParameters that has the
/// rare steps of one group as methods.
class Leases {
 public:
  /// `owner` has the rare steps of a model as methods: begun(), ended(output), settle_loans(lent),
  /// move(lent, place_number), keep(written).
  Leases(nb::object owner, nb::object engine, nb::object session, nb::object saved,
         const LeaseFunctions& functions);

  /// A forward of a hooked module begins, in `frame`. False where it is run for the forward of
  /// another thread, which waits for it: nothing is leased then, weights stay lent, or parked and
  /// read at each operation. False, too, where the hook is not `attached` any more once the
  /// forwards of others are over.
  bool enter(const nb::object& frame, const bool& attached);
  /// It ends; `output` is None where it may have failed.
  void leave(const nb::object& frame, const nb::object& output);
  /// Leases a group and lends its weights. False where it has no place now: they stay parked.
  bool take(const nb::object& group);
  /// Parks a group's weights and gives the lease back; `output` without views of the arena. Where
  /// the forward `has_returned`, nobody else may keep one.
  nb::object give_back(const nb::object& group, nb::object output, bool has_returned);
  /// The same for all of them, whatever fails. Empties the list.
  nb::object give_back_all(std::vector<nb::object>& groups, nb::object output, bool has_returned);
  /// Parks groups that an abandoned forward had lent, gives back all leases, and keeps what it
  /// wrote: all of that, whatever fails.
  void abandon(const nb::list& groups);
  /// Takes another session, in a forked child.
  void renew(nb::object session) { session_ = std::move(session); }
  /// Lets the engine go; nothing is leased any more.
  void let_go() { engine_.reset(); }
  /// The stream of the last lease.
  std::optional<std::uintptr_t> last_stream() const noexcept { return last_stream_; }

 private:
  template <typename Visit>
  friend void visit_references(Leases& leases, const Visit& visit) {
    LeaseFunctions& functions = leases.functions_;
    for (nb::object* const held :
         {&leases.owner_, &leases.engine_, &leases.session_, &leases.saved_, &functions.stream,
          &functions.prepare, &functions.settle, &functions.loans, &functions.autocasts,
          &functions.clear_casts, &functions.held_back}) {
      visit(*held);
    }
  }

  void note_pass(void (BoundEngine::*edge)()) const;
  void lend(const nb::object& object, LentParameters& group, std::uint32_t place_number);
  /// What was written to it, which is `changed`.
  nb::list park(const nb::object& object, LentParameters& group,
                const std::vector<std::size_t>& changed);
  /// Autocast would keep casts of what was lent in memory until its region ends.
  void drop_casts(const LentParameters& group);
  std::uint32_t acquire(GroupId group, std::uintptr_t stream);
  void release(GroupId group, std::uintptr_t stream);
  void release_all(std::uintptr_t stream);
  void load_anew(GroupId group, std::uintptr_t stream);
  std::uintptr_t stream() const;
  bool has_loans() const;

  nb::object owner_;
  nb::object engine_;
  nb::object session_;
  nb::object saved_;
  LeaseFunctions functions_;
  std::optional<std::uintptr_t> last_stream_;
};

/// The hooks of one module: lease its groups for the time of its forward.
class Unit {
 public:
  /// `module_code` is the file of torch's code for modules; `refuse_tracing` raises where torch
  /// records; `set_eval_frame` as UncompiledScope has it.
  Unit(nb::object leases, nb::list groups, nb::str module_code, nb::object refuse_tracing,
       nb::object set_eval_frame);

  /// The pre-hook: leases the groups.
  void before(const nb::object& module, const nb::object& args);
  /// before(), where that was not called for this call of the module.
  void begin(const nb::object& module, const nb::object& args);
  /// The post-hook: gives them back; the output without views of their places, or None.
  nb::object after(const nb::object& module, const nb::object& args, const nb::object& output);
  /// Drops what an abandoned forward left.
  void forget() { const auto ended = std::exchange(running_, {}); }  // whose end may run any code

  nb::list groups;
  bool attached = true;  // to its module

 private:
  /// What the thread handles now: that of its innermost `except` block; null outside of any.
  static const PyObject* handled_exception();
  /// A forward under way, and what it leased.
  struct Running {
    nb::object frame;      // null where the pre-hook failed
    bool entered = false;  // false where it runs for another thread's forward
    std::vector<nb::object> held{};
    const PyObject* handled = handled_exception();  // by its caller, which keeps it
    std::uint64_t thread = PyThread_get_thread_ident();
  };
  template <typename Visit>
  friend void visit_references(Unit& unit, const Visit& visit) {
    visit(unit.leases_);
    visit(unit.groups);
    for (Running& running : unit.running_) {
      visit(running.frame);
      for (nb::object& held : running.held) visit(held);
    }
  }

  /// Begins a forward, and tells in `is_noted`, where it fails too, whether that is in running_.
  void begin_forward(bool& is_noted);
  nb::object frame_of_call() const;
  /// Of this thread, the last that began; the end where there is none.
  std::vector<Running>::iterator last_of_thread();

  nb::object leases_;
  const nb::str module_code_;
  const nb::object refuse_tracing_;
  const nb::object set_eval_frame_;
  std::vector<Running> running_;
};

}  // namespace tensorstream

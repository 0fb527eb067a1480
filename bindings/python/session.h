// Session: one forward at a time; who runs a model now, and whether that forward is still alive.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/bell.h"
#include "bindings.h"

namespace tensorstream {

/// The right to run a model. Threads wait for each other; one thread may enter again. A thread that
/// computes something which a forward of another waits for does not wait for that: it runs for it.
/// Every call holds the GIL, which guards it.
///
/// A forward is known by the frame that calls its hooks: when that frame is on no stack any more,
/// the forward is over, whether its post-hooks ran or not.
class Session {
 public:
  /// What a forward is that enters.
  enum class Entry {
    kOutermost,  // no other forward of the thread is under way
    kWithin,     // one is
    kForOther,   // it is run for the forward of another thread: nothing is entered, or to be left
  };

  /// `reclaim` gives back everything that an abandoned forward held; `waits_for_caller` tells
  /// whether the forward that is under way waits for the calling thread, which is not its own.
  Session(nb::object reclaim, nb::object waits_for_caller);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Waits until no other thread runs the model, and takes it for the forward that `frame` runs.
  Entry enter(const nb::object& frame);
  /// As enter(), for what cannot be done in the midst of a forward: false, and nothing is done,
  /// where this thread runs one, or runs for one.
  bool enter_alone(const nb::object& frame);
  /// Whether this thread runs the model, and `frame` is the forward that all others are in.
  bool is_outermost(const nb::object& frame) const;
  /// Ends the forward that entered with `frame`. False where it was given up before.
  bool leave(const nb::object& frame);
  /// Ends a forward that is on no stack any more, and whose leases nobody gives back.
  void end_abandoned();

 private:
  template <typename Visit>
  friend void visit_references(Session& session, const Visit& visit) {
    visit(session.reclaim_);
    visit(session.waits_for_caller_);
    for (nb::object& frame : session.frames_) visit(frame);
  }

  bool is_mine() const;
  bool wait(const nb::object& frame);
  bool is_waited_for_by_me() const;
  void wait_for_change(std::uint64_t rung);
  void wait_for_reclaim();
  bool other_reclaims() const;
  bool end_if_abandoned(std::uint64_t rung, const nb::object& own);
  void end(bool reclaim);

  nb::object reclaim_;
  nb::object waits_for_caller_;
  std::vector<nb::object> frames_;  // of the owner, the outermost first
  std::uint64_t owner_ = 0;         // a thread; nobody runs the model where there is no frame
  bool left_open_ = false;          // a forward within the outermost ended without its post-hooks
  std::uint64_t reclaimer_ = 0;     // the thread that gives back what an abandoned one held, or 0
  std::unique_ptr<Bell> changed_;
  const std::int64_t process_;
};

}  // namespace tensorstream

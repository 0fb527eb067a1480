#include "session.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/clock.h"
#include "platform/process_memory.h"
#include "references.h"
#include "stacks.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using namespace nb::literals;

// How often a thread that waits for a model looks whether the forward it waits for was abandoned: a
// thread that ends inside a forward (Ctrl-C skips post-hooks) wakes nobody.
constexpr std::chrono::milliseconds kAbandonedCheck{50};

// How long threads wait for each other before one of them is told. A forward that was abandoned is
// ended sooner by who waits for it.
constexpr std::chrono::milliseconds kToldAfter{4 * kAbandonedCheck};

using SessionsOfThreads = std::unordered_map<std::uint64_t, const Session*>;

/// Which session each thread waits for: guarded by the GIL. Threads may be waiting as the process
/// ends, so it stays; those of its parent are not in a forked child.
SessionsOfThreads& waited_for() {
  static std::int64_t process = process_id();
  static auto& sessions = *new SessionsOfThreads;
  if (process != process_id()) {
    process = process_id();
    sessions.clear();
  }
  return sessions;
}

// The thread that ends the interpreter; 0 before. Others that wait do so for good then: they could
// not come back to Python, which unwinds threads that do, and C++ ends the process at that.
std::atomic<std::uint64_t> ending_thread = 0;

/// Without the GIL.
void stay_where_python_ends() {
  const std::uint64_t ending = ending_thread;
  if (ending == 0 || ending == PyThread_get_thread_ident()) return;
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

/// As Python ends, and daemon threads do not.
void keep_waiting_threads() {
  ending_thread = PyThread_get_thread_ident();
  // Each is back from its wait by then, and in the next one or out of all.
  if (!waited_for().empty()) unlocked([] { std::this_thread::sleep_for(3 * kAbandonedCheck); });
}

/// Says that the calling thread waits for a session, as long as it does.
class Waiting {
 public:
  explicit Waiting(const Session& session) {
    waited_for().insert_or_assign(PyThread_get_thread_ident(), &session);
  }
  ~Waiting() { waited_for().erase(PyThread_get_thread_ident()); }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;
};

}  // namespace

Session::Session(nb::object reclaim, nb::object waits_for_caller)
    : reclaim_(std::move(reclaim)),
      waits_for_caller_(std::move(waits_for_caller)),
      changed_(std::make_unique<Bell>()),
      process_(process_id()) {}

Session::~Session() {
  // Threads that waited when the process was forked are not here to be waited for.
  if (process_ != process_id()) static_cast<void>(changed_.release());
}

bool Session::is_mine() const { return !frames_.empty() && owner_ == PyThread_get_thread_ident(); }

Session::Entry Session::enter(const nb::object& frame) {
  if (!wait(frame)) return Entry::kForOther;
  owner_ = PyThread_get_thread_ident();
  frames_.push_back(frame);
  return frames_.size() == 1 ? Entry::kOutermost : Entry::kWithin;
}

bool Session::enter_alone(const nb::object& frame) {
  if (!wait(frame) || !frames_.empty()) return false;
  owner_ = PyThread_get_thread_ident();
  frames_.push_back(frame);
  return true;
}

// Until nobody, or this thread, runs the model. False where who runs it waits for this thread. What
// is asked meanwhile may let other threads run: nothing is known of the session after it.
bool Session::wait(const nb::object& frame) {
  std::optional<Clock::time_point> circular_since;
  for (;;) {
    wait_for_reclaim();
    if (frames_.empty()) return true;
    const std::uint64_t rung = changed_->count();
    if (is_mine()) {
      if (!end_if_abandoned(rung, frame) && is_mine()) return true;
      continue;
    }
    if (static_cast<bool>(nb::bool_(waits_for_caller_()))) return false;
    if (end_if_abandoned(rung, nb::none())) continue;
    if (!is_waited_for_by_me()) {
      circular_since.reset();
    } else if (!circular_since) {
      circular_since = Clock::now();
    } else if (Clock::now() - *circular_since >= kToldAfter) {
      throw UnsupportedError(
          "threads run models that call each other, in opposite order, and each waits for a model "
          "that another one runs; put a lock around them, or run them in one thread");
    }
    const Waiting waiting(*this);
    wait_for_change(rung);
  }
}

// Whether who runs the model waits, for another one or over several, for one that this thread runs:
// for a moment also where a forward of one of them was abandoned, and nobody looked yet.
bool Session::is_waited_for_by_me() const {
  const std::uint64_t me = PyThread_get_thread_ident();
  const Session* session = this;
  for (std::size_t step = 0; step <= waited_for().size(); ++step) {
    if (session->frames_.empty()) return false;
    if (session->owner_ == me) return true;
    const auto next = waited_for().find(session->owner_);
    if (next == waited_for().end()) return false;
    session = next->second;
  }
  return false;
}

void Session::wait_for_change(std::uint64_t rung) {
  unlocked([&] {
    static_cast<void>(changed_->wait_for(rung, kAbandonedCheck));
    stay_where_python_ends();
  });
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

// What is given back lets go of the GIL.
void Session::wait_for_reclaim() {
  while (other_reclaims()) wait_for_change(changed_->count());
}

bool Session::other_reclaims() const {
  return reclaimer_ != 0 && reclaimer_ != PyThread_get_thread_ident();
}

bool Session::is_outermost(const nb::object& frame) const {
  return is_mine() && frames_.front().is(frame);
}

bool Session::leave(const nb::object& frame) {
  wait_for_reclaim();
  const auto same = [&](const nb::object& other) { return other.is(frame); };
  if (!is_mine() || std::ranges::none_of(frames_, same)) return false;
  while (true) {
    const nb::object last = std::move(frames_.back());
    frames_.pop_back();
    if (last.is(frame)) break;
    left_open_ = true;  // an interrupt ended it, and its caller went on
  }
  if (frames_.empty()) end(left_open_);
  return true;
}

void Session::end_abandoned() {
  if (reclaimer_ == PyThread_get_thread_ident()) return;
  wait_for_reclaim();
  if (frames_.empty()) return;
  nb::object own = nb::none();
  if (is_mine()) own = nb::borrow(reinterpret_cast<PyObject*>(PyEval_GetFrame()));
  static_cast<void>(end_if_abandoned(changed_->count(), own));
}

// Gives the session up where its outermost forward is not on its owner's stack: who calls is in
// `own` where it is the owner, else None. Each session that ends rings: one that did since `rung`
// is another's now, or nobody's.
bool Session::end_if_abandoned(std::uint64_t rung, const nb::object& own) {
  const auto is_other = [&] { return other_reclaims() || changed_->count() != rung; };
  if (is_other()) return false;
  // Whoever is in the innermost is in all others.
  const std::array<nb::object, 2> ends = {frames_.front(), frames_.back()};
  const bool runs = own.is_none() ? is_on_stack_of(owner_, ends) : is_on_stack(own, ends);
  if (runs || is_other()) return false;  // frames that end may run any code
  end(true);
  return true;
}

void Session::end(bool reclaim) {
  if (reclaim) {
    reclaimer_ = PyThread_get_thread_ident();
    try {
      reclaim_();
    } catch (...) {
      reclaimer_ = 0;
      throw;
    }
    reclaimer_ = 0;
  }
  const std::vector<nb::object> ended = std::exchange(frames_, {});  // whose end may run any code
  left_open_ = false;
  changed_->ring();
}

void init_session(nb::module_& module) {
  module.def("keep_waiting_threads", &keep_waiting_threads,
             "As Python ends: has threads that wait for a model wait for good.");
  nb::class_<Session>(module, "Session", nb::type_slots(Collected<Session>::slots.data()))
      .def(nb::init<nb::object, nb::object>(), "reclaim"_a, "waits_for_caller"_a)
      .def(
          "enter",
          [](Session& self, const nb::object& frame) {
            return self.enter(frame) == Session::Entry::kOutermost;
          },
          "frame"_a,
          "Waits until no other thread runs the model, and takes it for the forward of `frame`; "
          "whether that is in no other.")
      .def("enter_alone", &Session::enter_alone, "frame"_a,
           "The same, for what cannot be done in the midst of a forward: False, and nothing is "
           "done, "
           "where this thread runs one, or runs for one.")
      .def("end_abandoned", &Session::end_abandoned,
           "Ends a forward that will never run its post-hooks, if there is one.")
      .def("is_outermost", &Session::is_outermost, "frame"_a,
           "Whether this thread runs the model, and the forward of `frame` is in no other.")
      .def("leave", &Session::leave, "frame"_a,
           "Ends the forward of `frame`. False where it was given up before.");
}

}  // namespace tensorstream

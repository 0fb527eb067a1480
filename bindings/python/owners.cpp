#include "owners.h"

#include <utility>
#include <vector>

#include "base/mutex.h"

namespace tensorstream {
namespace {

namespace nb = nanobind;

/// One object that is kept. Made beforehand, so that to let go of it takes no memory.
struct Kept {
  PyObject* object = nullptr;
  Kept* next = nullptr;
};

struct LetGo {
  Mutex mutex;
  Kept* first TS_GUARDED_BY(mutex) = nullptr;
};

// A process has one interpreter; this list outlives it.
LetGo& let_go() {
  static auto* const list = new LetGo;  // NOLINT(cppcoreguidelines-owning-memory)
  return *list;
}

int release_on_main_thread(void* /*unused*/) {
  Kept* kept = nullptr;
  {
    const MutexLock lock(let_go().mutex);
    kept = std::exchange(let_go().first, nullptr);
  }
  while (kept != nullptr) {
    const std::unique_ptr<Kept> done(std::exchange(kept, kept->next));
    Py_DECREF(done->object);
  }
  return 0;
}

void release_later(Kept* kept) {
  if (!nb::is_alive()) return;
  {
    const MutexLock lock(let_go().mutex);
    kept->next = std::exchange(let_go().first, kept);
  }
  // A full queue of calls refuses this one; the next object to be let go asks again for all.
  Py_AddPendingCall(release_on_main_thread, nullptr);
}

}  // namespace

std::shared_ptr<const void> keep_alive(const nb::object& owner) {
  auto kept = std::make_unique<Kept>();
  kept->object = owner.inc_ref().ptr();
  return {kept.release(), release_later};
}

}  // namespace tensorstream

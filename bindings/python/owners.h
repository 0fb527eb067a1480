// Python objects that the engine keeps alive.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

namespace tensorstream {

/// Keeps `owner` alive until the last copy of the result goes, on whatever thread that is. The
/// object itself is let go by the interpreter's main thread: an engine's thread never waits for the
/// GIL, which it could not get while the interpreter ends, and which another thread may hold while
/// it waits for a lock of the engine. Needs the GIL.
std::shared_ptr<const void> keep_alive(const nanobind::object& owner);

}  // namespace tensorstream

// The processors that threads may use.
#pragma once

namespace tensorstream {

/// How many processors the calling thread may run on (its affinity, not the machine's); at least 1.
unsigned usable_processors() noexcept;

}  // namespace tensorstream

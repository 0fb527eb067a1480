// What Prefetch::kAdaptive means for files that are read in one way or another.
#pragma once

#include "io/file_opener.h"
#include "tensorstream/engine.h"

namespace tensorstream {

/// `prefetch`, or kAhead in place of kAdaptive where files are read past the page cache: the disk
/// then writes to the arena by itself, which takes no core from who computes, and there is no page
/// cache to bring the next groups to.
Prefetch prefetch_for(Prefetch prefetch, FileBackend backend) noexcept;

}  // namespace tensorstream

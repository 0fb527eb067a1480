// How files are read where nobody says it.
#pragma once

#include <cstdint>
#include <string>

#include "io/file_opener.h"
#include "tensorstream/engine.h"

namespace tensorstream {

struct BackendChoice {
  FileBackend backend = FileBackend::kPread;
  std::string reason;
};

/// Past the page cache where each pass by `plan` reads more from files than the page cache can
/// hold: `available_bytes` of RAM are free before the plan's own memory is taken. A page cache that
/// is smaller than what is read in turn never has what is read next.
BackendChoice choose_backend(const Plan& plan, ComputePlace place, std::uint64_t available_bytes);

}  // namespace tensorstream

#include "engine/backend_choice.h"

#include <algorithm>

#include "base/units.h"
#include "engine/model_plan.h"

namespace tensorstream {

BackendChoice choose_backend(const Plan& plan, ComputePlace place, std::uint64_t available_bytes) {
  const bool on_host = place == ComputePlace::kHost;
  const std::uint64_t read = on_host ? plan.streamed_bytes : plan.disk_bytes;
  if (read == 0) return {FileBackend::kPread, "no pass reads files"};
  const std::uint64_t own = on_host ? plan.resident_bytes + plan.arena_bytes : plan.home_bytes;
  const std::uint64_t left = default_budget_bytes(available_bytes - std::min(available_bytes, own));
  const std::string facts = "each pass reads " + format_size(read) +
                            ", and the page cache has room for " + format_size(left);
  return {read > left ? FileBackend::kDirect : FileBackend::kPread, facts};
}

}  // namespace tensorstream

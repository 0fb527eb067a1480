// Whether a device looks for the faults of its users.
#pragma once

namespace tensorstream {

/// How a device treats its users.
enum class Checking {
  kOff,
  /// poison() writes 0xFF and streams are delayed at random, so that a racing or stale access
  /// shows; on HostDevice access rights are real (mprotect), and such an access faults.
  kOn,
};

}  // namespace tensorstream

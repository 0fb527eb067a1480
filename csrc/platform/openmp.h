// The OpenMP runtime that the process computes with, where there is one.
#pragma once

#include <functional>

namespace tensorstream {

/// Runs `work` on the calling thread and, at the same time, on the other threads of its OpenMP
/// team, and returns when all are done; on the calling thread alone where the process has loaded no
/// OpenMP runtime. `work` must not throw. Between two computations the team's threads spin on their
/// cores: any other thread would have to share these with them.
void run_on_team(const std::function<void()>& work);

}  // namespace tensorstream

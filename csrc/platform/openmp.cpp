#include "platform/openmp.h"

#include <dlfcn.h>

#include <bit>

namespace tensorstream {
namespace {

/// What compilers make of `#pragma omp parallel`: GNU's and Intel's runtimes both have it.
using Parallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

Parallel find_parallel() { return std::bit_cast<Parallel>(::dlsym(RTLD_DEFAULT, "GOMP_parallel")); }

}  // namespace

void run_on_team(const std::function<void()>& work) {
  // Each time: a runtime may be loaded later, and to look takes a fraction of a microsecond.
  const Parallel parallel = find_parallel();
  if (parallel == nullptr) return work();
  parallel([](void* data) { (*static_cast<const std::function<void()>*>(data))(); },
           const_cast<std::function<void()>*>(&work), 0, 0);
}

}  // namespace tensorstream

#include "engine/no_memory.h"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

thread_local int allocations_left = 0;  // until one fails; 0 where none does

}  // namespace

// The program's own, which the standard library's others call; but a sanitizer's do not, so that
// all of one kind are here.
void* operator new(std::size_t size_bytes) {
  if (allocations_left != 0 && --allocations_left == 0) throw std::bad_alloc();
  void* const memory = std::malloc(size_bytes == 0 ? 1 : size_bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(std::size_t size_bytes, const std::nothrow_t& /*nothrow*/) noexcept {
  try {
    return operator new(size_bytes);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t /*size_bytes*/) noexcept { std::free(memory); }

namespace tensorstream {

NoMemory::NoMemory(int nth) { allocations_left = nth; }
NoMemory::~NoMemory() { allocations_left = 0; }
bool NoMemory::has_failed() const { return allocations_left == 0; }

}  // namespace tensorstream

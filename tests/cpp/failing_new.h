// Makes allocations of memory fail. It replaces operator new, so one file of a program includes it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace gpupool {

// The n-th allocation from now, of this thread, throws std::bad_alloc; 0 for none.
inline constinit thread_local std::uint64_t bad_alloc_at = 0;
inline constinit thread_local std::uint64_t bad_allocs = 0;

}  // namespace gpupool

[[gnu::noinline]] void* operator new(std::size_t bytes) {
  if (gpupool::bad_alloc_at > 0 && --gpupool::bad_alloc_at == 0) {
    ++gpupool::bad_allocs;
    throw std::bad_alloc();
  }
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

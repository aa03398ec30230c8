// Makes allocations of memory fail. It replaces operator new, so one file of a program includes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace gpupool {

// The n-th allocation from now, of this thread, throws std::bad_alloc, and where it is persistent
// so do all after it; 0 for none.
inline constinit thread_local std::uint64_t bad_alloc_at = 0;
inline constinit thread_local bool bad_alloc_persistent = false;
inline constinit thread_local std::uint64_t bad_allocs = 0;

inline void fail_allocations(std::uint64_t nth, bool persistent) {
  bad_allocs = 0;
  bad_alloc_persistent = persistent;
  bad_alloc_at = nth;
}

// Null counts as a failure too: there is no memory.
inline void* allocated(void* (*allocate)(std::size_t, std::size_t), std::size_t alignment,
                       std::size_t bytes) {
  if (bad_alloc_at > 0 && --bad_alloc_at == 0) {
    if (bad_alloc_persistent) bad_alloc_at = 1;
    ++bad_allocs;
    throw std::bad_alloc();
  }
  if (void* memory = allocate(alignment, bytes)) return memory;
  throw std::bad_alloc();
}

inline void* allocate_plain(std::size_t, std::size_t bytes) {
  return std::malloc(bytes == 0 ? 1 : bytes);
}
// A whole number of times the alignment, as aligned_alloc() wants it.
inline void* allocate_aligned(std::size_t alignment, std::size_t bytes) {
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

}  // namespace gpupool

// The forms for arrays and those that take a size are replaced as well: a sanitizer has its own.
#define GPUPOOL_NEW(form)                                                                     \
  [[gnu::noinline]] void* operator form(std::size_t bytes) {                                  \
    return gpupool::allocated(gpupool::allocate_plain, 1, bytes);                             \
  }                                                                                           \
  [[gnu::noinline]] void* operator form(std::size_t bytes, std::align_val_t alignment) {      \
    return gpupool::allocated(gpupool::allocate_aligned, static_cast<std::size_t>(alignment), \
                              bytes);                                                         \
  }
#define GPUPOOL_DELETE(form)                                                                      \
  [[gnu::noinline]] void operator form(void* memory) noexcept { std::free(memory); }              \
  [[gnu::noinline]] void operator form(void* memory, std::size_t) noexcept { std::free(memory); } \
  [[gnu::noinline]] void operator form(void* memory, std::align_val_t) noexcept {                 \
    std::free(memory);                                                                            \
  }                                                                                               \
  [[gnu::noinline]] void operator form(void* memory, std::size_t, std::align_val_t) noexcept {    \
    std::free(memory);                                                                            \
  }
GPUPOOL_NEW(new)
GPUPOOL_NEW(new[])
GPUPOOL_DELETE(delete)
GPUPOOL_DELETE(delete[])
#undef GPUPOOL_NEW
#undef GPUPOOL_DELETE

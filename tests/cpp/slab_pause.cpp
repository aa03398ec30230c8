// Lingers where the threads of a slab allocator meet, now and then, so that they do meet.
#include <cstdint>
#include <thread>

#include "memory/slab.h"

namespace gpupool {

void slab_pause() noexcept {
  static std::atomic<std::uint32_t> threads{0};
  static thread_local std::uint32_t random = 2654435769u * (++threads);
  random = random * 1664525 + 1013904223;
  if (random >> 29 == 0) {
    for (std::uint32_t left = random >> 18 & 0x7FF; left > 0; --left) asm volatile("");
  } else if (random >> 25 == 127) {
    std::this_thread::yield();
  }
}

}  // namespace gpupool

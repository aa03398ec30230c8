// How a word counts in a digest (digest.h defines it), for processors and for GPUs.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define GPUPOOL_ON_DEVICE __host__ __device__
#else
#define GPUPOOL_ON_DEVICE
#endif

// Of the four rounds; a macro, since device code cannot refer to an array of the host's.
#define GPUPOOL_DIGEST_MULTIPLIERS {0xd2511f53, 0xcd9e8d57, 0x9e3779b1, 0x85ebca77}

namespace gpupool {

// The key of word number i is i + 1 times this.
inline constexpr std::uint64_t digest_key_step = 0x9e3779b97f4a7c15;

GPUPOOL_ON_DEVICE inline std::uint64_t digest_mix(std::uint64_t word, std::uint64_t key) noexcept {
  constexpr std::uint32_t multipliers[] = GPUPOOL_DIGEST_MULTIPLIERS;
  std::uint64_t z = word ^ key;
  for (const std::uint32_t m : multipliers) {
    const std::uint64_t product = (z & 0xffffffff) * m;
    z = (product << 32 | product >> 32) ^ (z >> 32);
  }
  return z;
}

}  // namespace gpupool

// What one thread of the kernel does that digests device memory: C++ that nvcc compiles for the
// device, and the tests for the host.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define GPUPOOL_ON_DEVICE __host__ __device__
#else
#define GPUPOOL_ON_DEVICE
#endif

namespace gpupool::digest_kernel {

inline constexpr unsigned threads = 1024;  // of a block, which has one piece

// As digest/digest.h defines it.
GPUPOOL_ON_DEVICE inline std::uint64_t mix(std::uint64_t word, std::uint64_t number) {
  constexpr std::uint32_t multipliers[] = {0xd2511f53, 0xcd9e8d57, 0x9e3779b1, 0x85ebca77};
  std::uint64_t z = word ^ (number + 1) * 0x9e3779b97f4a7c15;
  for (const std::uint32_t m : multipliers) {
    const std::uint64_t product = std::uint64_t{static_cast<std::uint32_t>(z)} * m;
    z = (product << 32) | (static_cast<std::uint32_t>(z >> 32) ^ (product >> 32));
  }
  return z;
}

GPUPOOL_ON_DEVICE inline std::uint64_t word_at(const unsigned char* memory, unsigned bytes) {
  std::uint64_t word = 0;
  for (unsigned i = 0; i < bytes; ++i) word |= std::uint64_t{memory[i]} << 8 * i;
  return word;
}

// The share of one thread in the digest of a piece; the digest is their sum.
GPUPOOL_ON_DEVICE inline std::uint64_t share(const unsigned char* memory, std::uint64_t bytes,
                                             unsigned thread) {
  const std::uint64_t words = bytes / 8;
  std::uint64_t sum = 0;
  if (reinterpret_cast<std::uintptr_t>(memory) % 8 == 0) {
    const auto* const at = reinterpret_cast<const std::uint64_t*>(memory);
#ifdef __CUDACC__
#pragma unroll 8
#endif
    for (std::uint64_t i = thread; i < words; i += threads) sum += mix(at[i], i);
  } else {
    for (std::uint64_t i = thread; i < words; i += threads)
      sum += mix(word_at(memory + 8 * i, 8), i);
  }
  const auto rest = static_cast<unsigned>(bytes % 8);
  if (thread == 0 && rest > 0) {
    const std::uint64_t last = word_at(memory + 8 * words, rest) | std::uint64_t{rest} << 56;
    sum += mix(last, ~words);
  }
  return sum;
}

}  // namespace gpupool::digest_kernel

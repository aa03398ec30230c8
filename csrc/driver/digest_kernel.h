// What one thread of the kernels does that digests device memory: C++ that nvcc compiles for the
// device, and the tests for the host.
#pragma once

#include <cstdint>

#include "digest/mix.h"

namespace gpupool::digest_kernel {

inline constexpr unsigned threads = 1024;  // of a block, which has one piece or run

// As DeviceRun, for a file that knows nothing else of the driver.
struct Run {
  std::uint64_t address;
  std::uint64_t bytes;
};

// The word of that number, as it counts.
GPUPOOL_ON_DEVICE inline std::uint64_t mixed(std::uint64_t word, std::uint64_t number) {
  return digest_mix(word, (number + 1) * digest_key_step);
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
    for (std::uint64_t i = thread; i < words; i += threads) sum += mixed(at[i], i);
  } else {
    for (std::uint64_t i = thread; i < words; i += threads)
      sum += mixed(word_at(memory + 8 * i, 8), i);
  }
  const auto rest = static_cast<unsigned>(bytes % 8);
  if (thread == 0 && rest > 0) {
    const std::uint64_t last = word_at(memory + 8 * words, rest) | std::uint64_t{rest} << 56;
    sum += mixed(last, ~words);
  }
  return sum;
}

}  // namespace gpupool::digest_kernel

// What makes a pass over much memory fast, for the loops of this room and the host driver's copies.
#pragma once

#include <algorithm>
#include <cstddef>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gpupool {

// A copy of this size or more goes past the caches: what it wrote would push everything else out of
// them, and its destination would be read before it is written. memcpy does so from tens of MiB on.
inline constexpr std::size_t streaming_bytes = std::size_t{256} << 10;

// What a processor reads and writes at a time.
inline constexpr std::size_t line_bytes = 64;

// Where the part begins that a pass over `bytes` bytes should ask for when it is at `at`: whole
// parts, all of them. A processor looks ahead by itself, but only within a page of 4 KiB, in
// several at a time: so a pass, which is in order, asks for parts of its next four pages in turn.
// (The asking is left to the caller: GCC takes a function that does only that for one that does
// nothing.)
template <std::size_t part_bytes>
[[nodiscard]] inline std::size_t part_ahead(std::size_t at, std::size_t bytes) noexcept {
  constexpr std::size_t pages = 4, page_bytes = 4096, group_bytes = pages * page_bytes;
  const std::size_t part = at % group_bytes / part_bytes;
  const std::size_t next = at / group_bytes * group_bytes + group_bytes +
                           part % pages * page_bytes + part / pages * part_bytes;
  // Without a branch, which costs more than to ask for the last part again.
  return std::min(next, bytes - part_bytes);
}

#if defined(__x86_64__)
// Stores past the caches, of an aligned vector; plain ones for GCC's sanitizers, which do not see
// the others.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GPUPOOL_STREAM_128 _mm_store_si128
#define GPUPOOL_STREAM_256 _mm256_store_si256
#else
#define GPUPOOL_STREAM_128 _mm_stream_si128
#define GPUPOOL_STREAM_256 _mm256_stream_si256
#endif
#endif

}  // namespace gpupool

#include "driver/host_copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "digest/streaming.h"

namespace gpupool::host {
namespace {

void run_memcpy(std::byte* destination, const std::byte* source, std::size_t bytes) noexcept {
  std::memcpy(destination, source, bytes);
}

#if defined(__x86_64__)

// Whole lines, to where one begins. The stores of a line follow upon one another, or it would be
// written in parts.
void lines_sse2(std::byte* destination, const std::byte* source, std::size_t bytes) noexcept {
  for (std::size_t at = 0; at < bytes; at += line_bytes) {
    __builtin_prefetch(source + part_ahead<line_bytes>(at, bytes));
    const auto* const from = reinterpret_cast<const __m128i*>(source + at);
    auto* const to = reinterpret_cast<__m128i*>(destination + at);
    const __m128i first = _mm_loadu_si128(from), second = _mm_loadu_si128(from + 1);
    const __m128i third = _mm_loadu_si128(from + 2), fourth = _mm_loadu_si128(from + 3);
    GPUPOOL_STREAM_128(to, first);
    GPUPOOL_STREAM_128(to + 1, second);
    GPUPOOL_STREAM_128(to + 2, third);
    GPUPOOL_STREAM_128(to + 3, fourth);
  }
}

__attribute__((target("avx2"))) void lines_avx2(std::byte* destination, const std::byte* source,
                                                std::size_t bytes) noexcept {
  for (std::size_t at = 0; at < bytes; at += line_bytes) {
    __builtin_prefetch(source + part_ahead<line_bytes>(at, bytes));
    const auto* const from = reinterpret_cast<const __m256i*>(source + at);
    auto* const to = reinterpret_cast<__m256i*>(destination + at);
    const __m256i low = _mm256_loadu_si256(from), high = _mm256_loadu_si256(from + 1);
    GPUPOOL_STREAM_256(to, low);
    GPUPOOL_STREAM_256(to + 1, high);
  }
}

template <auto lines>
void run_lines(std::byte* destination, const std::byte* source, std::size_t bytes) noexcept {
  const auto address = reinterpret_cast<std::uintptr_t>(destination);
  const std::size_t head = std::min(bytes, (0 - address) % line_bytes);
  const std::size_t whole = (bytes - head) / line_bytes * line_bytes;
  const std::size_t done = head + whole;
  std::memcpy(destination, source, head);
  lines(destination + head, source + head, whole);
  std::memcpy(destination + done, source + done, bytes - done);
  _mm_sfence();  // what this thread says next, others may take to be said after the copy
}

constexpr CopyPath all_paths[] = {
    {"memcpy", run_memcpy}, {"sse2", run_lines<lines_sse2>}, {"avx2", run_lines<lines_avx2>}};
std::size_t usable_paths() noexcept { return __builtin_cpu_supports("avx2") ? 3 : 2; }

#else

constexpr CopyPath all_paths[] = {{"memcpy", run_memcpy}};
std::size_t usable_paths() noexcept { return 1; }

#endif

}  // namespace

std::span<const CopyPath> copy_paths() noexcept { return {all_paths, usable_paths()}; }

void copy_bytes(void* destination, const void* source, std::size_t bytes) noexcept {
  const CopyPath& path = bytes < streaming_bytes ? copy_paths().front() : copy_paths().back();
  path.run(static_cast<std::byte*>(destination), static_cast<const std::byte*>(source), bytes);
}

}  // namespace gpupool::host

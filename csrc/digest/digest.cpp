#include "digest/digest.h"

#include <bit>
#include <cstring>

#include "digest/mix.h"
#include "digest/streaming.h"

namespace gpupool {
namespace {

static_assert(std::endian::native == std::endian::little, "words are read as they lie");

constexpr std::uint64_t key_step = digest_key_step;
constexpr std::uint32_t multipliers[] = GPUPOOL_DIGEST_MULTIPLIERS;
constexpr std::size_t word_bytes = 8;

// For processors without a path of their own, and what vectors leave over. Compilers do not make
// good vectors of it (GCC 12 on x86-64, Clang on arm64): hence the paths below.
template <bool copy>
inline std::uint64_t sum_portable(std::byte* destination, const std::byte* source,
                                  std::size_t words, std::uint64_t first_word) noexcept {
  std::uint64_t sum = 0;
  const std::uint64_t first_key = (first_word + 1) * key_step;
  for (std::size_t i = 0; i < words; ++i) {
    std::uint64_t word = 0;
    std::memcpy(&word, source + word_bytes * i, word_bytes);
    if constexpr (copy) std::memcpy(destination + word_bytes * i, &word, word_bytes);
    sum += digest_mix(word, first_key + i * key_step);
  }
  return sum;
}

std::uint64_t run_portable(std::byte* destination, const std::byte* source, std::size_t words,
                           std::uint64_t first_word) noexcept {
  return destination == nullptr ? sum_portable<false>(destination, source, words, first_word)
                                : sum_portable<true>(destination, source, words, first_word);
}

#if defined(__x86_64__)

enum class Store { none, cached, streaming };

// The same loop for vectors of any width: macros, since what is inlined into a function for AVX2
// must be compiled for AVX2 itself. The halves of z are kept apart, `low` and `high` in the lower
// half of a lane each, whatever is above: a round is then three operations, and the halves are
// put together once, in the sums.
#define GPUPOOL_DIGEST_LOOP(TARGET, NAME, VECTOR, ADD, XOR, AND, MULTIPLY, SHIFT, LOAD, STORE,   \
                            STREAM, SPLAT)                                                       \
  template <Store kind>                                                                          \
  TARGET std::uint64_t NAME(std::byte* destination, const std::byte* source, std::size_t blocks, \
                            std::uint64_t first_word) noexcept {                                 \
    constexpr std::size_t lanes = sizeof(VECTOR) / word_bytes;                                   \
    VECTOR keys[vectors_a_block], lows = SPLAT(0), highs = SPLAT(0);                             \
    for (std::size_t v = 0; v < vectors_a_block; ++v) {                                          \
      std::uint64_t start[lanes];                                                                \
      for (std::size_t lane = 0; lane < lanes; ++lane) {                                         \
        start[lane] = (first_word + v * lanes + lane + 1) * key_step;                            \
      }                                                                                          \
      std::memcpy(&keys[v], start, sizeof(VECTOR));                                              \
    }                                                                                            \
    const VECTOR step = SPLAT(static_cast<long long>(vectors_a_block * lanes * key_step));       \
    const VECTOR lower_half = SPLAT(0xffffffff);                                                 \
    const std::size_t total = blocks * sizeof(keys);                                             \
    for (std::size_t block = 0; block < blocks; ++block) {                                       \
      __builtin_prefetch(source + part_ahead<sizeof(keys)>(block * sizeof(keys), total));        \
      VECTOR low[vectors_a_block], high[vectors_a_block];                                        \
      for (std::size_t v = 0; v < vectors_a_block; ++v) {                                        \
        const std::size_t at = (block * vectors_a_block + v) * sizeof(VECTOR);                   \
        const VECTOR words = LOAD(reinterpret_cast<const VECTOR*>(source + at));                 \
        if constexpr (kind == Store::cached) {                                                   \
          STORE(reinterpret_cast<VECTOR*>(destination + at), words);                             \
        } else if constexpr (kind == Store::streaming) {                                         \
          STREAM(reinterpret_cast<VECTOR*>(destination + at), words);                            \
        }                                                                                        \
        low[v] = XOR(words, keys[v]);                                                            \
        high[v] = SHIFT(low[v], 32);                                                             \
        keys[v] = ADD(keys[v], step);                                                            \
      }                                                                                          \
      for (const std::uint32_t m : multipliers) {                                                \
        for (std::size_t v = 0; v < vectors_a_block; ++v) {                                      \
          const VECTOR product = MULTIPLY(low[v], SPLAT(m));                                     \
          low[v] = XOR(SHIFT(product, 32), high[v]);                                             \
          high[v] = product;                                                                     \
        }                                                                                        \
      }                                                                                          \
      for (std::size_t v = 0; v < vectors_a_block; ++v) {                                        \
        lows = ADD(lows, AND(low[v], lower_half));                                               \
        highs = ADD(highs, high[v]);                                                             \
      }                                                                                          \
    }                                                                                            \
    std::uint64_t low_parts[lanes], high_parts[lanes], sum = 0;                                  \
    STORE(reinterpret_cast<VECTOR*>(low_parts), lows);                                           \
    STORE(reinterpret_cast<VECTOR*>(high_parts), highs);                                         \
    for (const std::uint64_t part : low_parts) sum += part;                                      \
    for (const std::uint64_t part : high_parts) sum += part << 32;                               \
    return sum;                                                                                  \
  }

// Of AVX2 a line; more of them take more registers than there are.
constexpr std::size_t vectors_a_block = 2;

GPUPOOL_DIGEST_LOOP(, sum_sse2, __m128i, _mm_add_epi64, _mm_xor_si128, _mm_and_si128, _mm_mul_epu32,
                    _mm_srli_epi64, _mm_loadu_si128, _mm_storeu_si128, GPUPOOL_STREAM_128,
                    _mm_set1_epi64x)
GPUPOOL_DIGEST_LOOP(__attribute__((target("avx2"))), sum_avx2, __m256i, _mm256_add_epi64,
                    _mm256_xor_si256, _mm256_and_si256, _mm256_mul_epu32, _mm256_srli_epi64,
                    _mm256_loadu_si256, _mm256_storeu_si256, GPUPOOL_STREAM_256, _mm256_set1_epi64x)

struct Loops {
  std::uint64_t (*none)(std::byte*, const std::byte*, std::size_t, std::uint64_t) noexcept;
  std::uint64_t (*cached)(std::byte*, const std::byte*, std::size_t, std::uint64_t) noexcept;
  std::uint64_t (*streaming)(std::byte*, const std::byte*, std::size_t, std::uint64_t) noexcept;
  std::size_t vector_bytes;
};

std::uint64_t run_loops(const Loops& loops, std::byte* destination, const std::byte* source,
                        std::size_t words, std::uint64_t first_word) noexcept {
  const std::size_t block_words = vectors_a_block * loops.vector_bytes / word_bytes;
  std::uint64_t sum = 0;
  const auto go_on = [&](auto* run, std::size_t units, std::size_t unit_words) {
    sum += run(destination, source, units, first_word);
    const std::size_t done = units * unit_words;
    source += done * word_bytes;
    if (destination != nullptr) destination += done * word_bytes;
    first_word += done;
    words -= done;
  };
  auto* loop = destination == nullptr ? loops.none : loops.cached;
  const auto address = reinterpret_cast<std::uintptr_t>(destination);
  if (destination != nullptr && words >= streaming_bytes / word_bytes &&
      address % word_bytes == 0) {
    // Up to where a vector is aligned, as streaming needs.
    go_on(&run_portable, (0 - address) % loops.vector_bytes / word_bytes, 1);
    loop = loops.streaming;
  }
  go_on(loop, words / block_words, block_words);
  if (loop == loops.streaming) _mm_sfence();
  go_on(&run_portable, words, 1);
  return sum;
}

constexpr Loops loops_sse2{sum_sse2<Store::none>, sum_sse2<Store::cached>,
                           sum_sse2<Store::streaming>, sizeof(__m128i)};
constexpr Loops loops_avx2{sum_avx2<Store::none>, sum_avx2<Store::cached>,
                           sum_avx2<Store::streaming>, sizeof(__m256i)};

std::uint64_t run_sse2(std::byte* destination, const std::byte* source, std::size_t words,
                       std::uint64_t first_word) noexcept {
  return run_loops(loops_sse2, destination, source, words, first_word);
}

std::uint64_t run_avx2(std::byte* destination, const std::byte* source, std::size_t words,
                       std::uint64_t first_word) noexcept {
  return run_loops(loops_avx2, destination, source, words, first_word);
}

constexpr DigestPath all_paths[] = {
    {"portable", run_portable}, {"sse2", run_sse2}, {"avx2", run_avx2}};
std::size_t usable_paths() noexcept { return __builtin_cpu_supports("avx2") ? 3 : 2; }

#else

constexpr DigestPath all_paths[] = {{"portable", run_portable}};
std::size_t usable_paths() noexcept { return 1; }

#endif

std::uint64_t whole(std::byte* destination, const std::byte* source, std::size_t bytes,
                    std::uint64_t first_word) noexcept {
  const std::size_t words = bytes / word_bytes;
  std::uint64_t sum = digest_paths().back().run(destination, source, words, first_word);
  if (const std::size_t rest = bytes % word_bytes; rest > 0) {
    std::uint64_t last = 0;
    std::memcpy(&last, source + words * word_bytes, rest);
    if (destination != nullptr) std::memcpy(destination + words * word_bytes, &last, rest);
    // The number of this word counted from the other end, 2^64 - 1 - i, plus one.
    sum += digest_mix(last | std::uint64_t{rest} << 56, (0 - (first_word + words)) * key_step);
  }
  return sum;
}

}  // namespace

std::span<const DigestPath> digest_paths() noexcept { return {all_paths, usable_paths()}; }

std::uint64_t digest(const void* data, std::size_t bytes, std::uint64_t first_word) noexcept {
  return whole(nullptr, static_cast<const std::byte*>(data), bytes, first_word);
}

std::uint64_t copy_with_digest(void* destination, const void* source, std::size_t bytes,
                               std::uint64_t first_word) noexcept {
  return whole(static_cast<std::byte*>(destination), static_cast<const std::byte*>(source), bytes,
               first_word);
}

}  // namespace gpupool

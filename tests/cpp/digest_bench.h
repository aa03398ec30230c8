// The definition of the digest written out once more, as plainly as it is worded.
#pragma once

#include <array>

#include "bench.h"
#include "digest/digest.h"

namespace gpupool {

using U64 = std::uint64_t;
inline constexpr std::array<U64, 4> multipliers{0xd2511f53, 0xcd9e8d57, 0x9e3779b1, 0x85ebca77};
inline constexpr U64 low_half = 0xffffffff;

inline U64 key_of(U64 index) { return (index + 1) * 0x9e3779b97f4a7c15; }

inline U64 mix(U64 word, U64 index) {
  U64 low = (word ^ key_of(index)) & low_half;
  U64 high = (word ^ key_of(index)) >> 32;
  for (const U64 m : multipliers) {
    const U64 product = low * m;
    low = (product >> 32) ^ high;
    high = product & low_half;
  }
  return high << 32 | low;
}

inline U64 defined(const std::uint8_t* data, std::size_t bytes, U64 first_word = 0) {
  U64 sum = 0;
  for (std::size_t at = 0; at < bytes; at += 8) {
    const std::size_t n = std::min<std::size_t>(8, bytes - at);
    U64 word = 0;
    for (std::size_t i = 0; i < n; ++i) word |= U64{data[at + i]} << (8 * i);
    const U64 index = first_word + at / 8;
    sum += n == 8 ? mix(word, index) : mix(word | U64{n} << 56, U64{0} - 1 - index);
  }
  return sum;
}

inline U64 of(const Bytes& bytes) { return digest(bytes.data(), bytes.size()); }

}  // namespace gpupool

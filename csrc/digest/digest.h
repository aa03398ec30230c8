// A 64-bit digest of a run of bytes, a page say, as a sum that can be made in parts.
//
// It is there to find accidents: stale bytes, a copy that went wrong or to the wrong place, memory
// that changed by itself. It is no defence against somebody who chooses the bytes: a change that
// keeps the digest is easy to construct.
//
// The definition. All arithmetic is modulo 2^64, unless said otherwise.
//
// The run is cut into words of 8 bytes, little-endian, counted from 0. A last part of n bytes,
// 0 < n < 8, is a word too: its n bytes from the low end, zeros, and n as its highest byte. So the
// length is part of the digest: whole words by their number, since no word adds nothing to every
// digest, not even one of zeros, and what is left of the last one by n.
//
//   digest = sum of mix(word, i) for every whole word, i being its number,
//          + mix(last part, 2^64 - 1 - i), if there is one, i being the number of whole words
//
//   mix(x, i):                                   low(z), high(z): the halves, as 32-bit numbers
//     z = x xor ((i + 1) * 0x9e3779b97f4a7c15)
//     for each m of 0xd2511f53, 0xcd9e8d57, 0x9e3779b1, 0x85ebca77 in this order:
//       p = low(z) * m                           64 bits, all of them
//       z = low(p) * 2^32 + (high(p) xor high(z))
//     return z
//
// mix is a bijection in x (each round can be undone, as every m is odd), so that no change within
// one word can go unseen. Changes of several words are missed by chance alone: 2^-64 for what has
// no pattern, and 2^-46 for the worst pattern found (bit 32 of two words flipped, of random
// content).
//
// A part of a run that starts at word number `first_word` has the sum of its words alone, numbered
// from there, and the digest of the whole is the sum of the digests of its parts, in any order.
// Every part but the last must be whole words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace gpupool {

// Nothing is assumed of the address.
[[nodiscard]] std::uint64_t digest(const void* data, std::size_t bytes,
                                   std::uint64_t first_word = 0) noexcept;

// Copies, and returns the digest of what was copied: each byte is read once, so the digest is that
// of the destination also when the source changes meanwhile. The two must not overlap.
std::uint64_t copy_with_digest(void* destination, const void* source, std::size_t bytes,
                               std::uint64_t first_word = 0) noexcept;

// One way to compute it: the sum over whole words, which it copies unless `destination` is null.
struct DigestPath {
  const char* name;
  std::uint64_t (*run)(std::byte* destination, const std::byte* source, std::size_t words,
                       std::uint64_t first_word) noexcept;
};

// Those that this processor can run, the fastest last, which is the one that is used. For tests
// and benchmarks.
[[nodiscard]] std::span<const DigestPath> digest_paths() noexcept;

}  // namespace gpupool

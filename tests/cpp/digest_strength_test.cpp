// What the digest must notice: every change of one word, and of several all but certainly.
#include <bit>
#include <cmath>

#include "digest_bench.h"

using namespace gpupool;

namespace {

enum class Halves { like_chance, any };

// No two are alike; of digests that are good to their halves, no more halves than chance has it.
void check_all_differ(std::vector<U64> digests, Halves of_halves = Halves::like_chance) {
  const auto pairs_alike = [](auto values) {
    std::sort(values.begin(), values.end());
    double pairs = 0;
    double run = 0;
    for (std::size_t i = 1; i < values.size(); ++i) {
      run = values[i] == values[i - 1] ? run + 1 : 0;
      pairs += run;
    }
    return pairs;
  };
  const auto count = static_cast<double>(digests.size());
  const double expected = count * (count - 1) / 2 * std::ldexp(1, -32);
  for (const int shift : {0, 16, 32}) {
    if (of_halves == Halves::any) break;
    std::vector<std::uint32_t> halves;
    for (const U64 value : digests) halves.push_back(static_cast<std::uint32_t>(value >> shift));
    CHECK(pairs_alike(std::move(halves)) <= expected + 6 * std::sqrt(expected) + 6);
  }
  CHECK_EQ(pairs_alike(std::move(digests)), 0.0);
}

}  // namespace

// So every change within one word is noticed, whatever else the run holds.
TEST(mix_can_be_undone) {
  std::array<U64, 4> inverses{};
  for (std::size_t i = 0; i < 4; ++i) {
    U64 inverse = 1;
    for (int step = 0; step < 6; ++step) inverse *= 2 - multipliers[i] * inverse;
    inverses[i] = inverse & low_half;
    CHECK_EQ(multipliers[i] * inverses[i] & low_half, U64{1});
  }
  const auto undo = [&](U64 mixed, U64 index) {
    U64 low = mixed & low_half;
    U64 high = mixed >> 32;
    for (std::size_t i = 4; i-- > 0;) {
      const U64 before = high * inverses[i] & low_half;
      high = low ^ (before * multipliers[i] >> 32);
      low = before;
    }
    return (high << 32 | low) ^ key_of(index);
  };
  std::mt19937_64 random(4);
  for (int i = 0; i < 100'000; ++i) {
    const U64 word = i % 2 == 0 ? random() : std::rotl(random() & 0xff, i % 64);
    const U64 index = i % 3 == 0 ? random() : random() & 0xffff;
    CHECK_EQ(undo(mix(word, index), index), word);
  }
}

TEST(every_flipped_bit_every_swap_and_every_move_differ) {
  for (const int kind : {0, 1, 2}) {
    Bytes page = kind == 0 ? Bytes(4096) : kind == 1 ? Bytes(4096, 0xff) : pattern(5, 4096);
    std::vector<U64> digests{of(page)};
    for (std::size_t bit = 0; bit < page.size() * 8; ++bit) {
      page[bit / 8] ^= static_cast<std::uint8_t>(1u << bit % 8);
      digests.push_back(of(page));
      page[bit / 8] ^= static_cast<std::uint8_t>(1u << bit % 8);
    }
    check_all_differ(std::move(digests));
  }
  const Bytes page = pattern(6, 4096);
  std::vector<U64> digests{of(page)};
  const auto word = [](Bytes& bytes, std::size_t i) {
    return bytes.begin() + 8 * static_cast<long>(i);
  };
  for (std::size_t i = 0; i < 512; ++i) {
    for (std::size_t j = i + 1; j < 512; j += i % 7 + 1) {
      Bytes changed = page;
      std::swap_ranges(word(changed, i), word(changed, i + 1), word(changed, j));
      digests.push_back(of(changed));
      if (j < i + 2) continue;  // a word moved one place is a swap
      changed = page;
      std::rotate(word(changed, i), word(changed, i + 1), word(changed, j + 1));
      digests.push_back(of(changed));
    }
  }
  for (long shift = 1; shift < 4096; ++shift) {
    if (shift == 8) continue;  // a moved word, above
    Bytes changed = page;
    std::rotate(changed.begin(), changed.begin() + shift, changed.end());
    digests.push_back(of(changed));
    changed = page;
    std::copy(page.begin(), page.end() - shift, changed.begin() + shift);
    digests.push_back(of(changed));
  }
  check_all_differ(std::move(digests));
}

TEST(a_shorter_run_of_the_same_bytes_differs) {
  for (const std::uint8_t value : {0x00, 0xff}) {
    const Bytes content(20'000, value);
    std::vector<U64> digests;
    for (std::size_t bytes = 0; bytes <= content.size(); ++bytes) {
      digests.push_back(digest(content.data(), bytes));
    }
    check_all_differ(std::move(digests));
  }
}

TEST(sparse_pages_differ) {
  Bytes page(1024);
  std::vector<U64> digests;
  for (std::size_t at = 0; at < page.size(); ++at) {  // any one byte, any value
    for (int value = 1; value < 256; ++value) {
      page[at] = static_cast<std::uint8_t>(value);
      digests.push_back(of(page));
    }
    page[at] = 0;
  }
  page.resize(64);
  for (std::size_t first = 0; first < 512; ++first) {  // any two bits
    for (std::size_t second = first + 1; second < 512; ++second) {
      if (first / 8 == second / 8) continue;  // seen above
      page[first / 8] ^= static_cast<std::uint8_t>(1u << first % 8);
      page[second / 8] ^= static_cast<std::uint8_t>(1u << second % 8);
      digests.push_back(of(page));
      std::fill(page.begin(), page.end(), 0);
    }
  }
  check_all_differ(std::move(digests));
}

// Changes that would cancel in a plain or a weighted sum, in words side by side and far apart.
TEST(two_and_four_words_changed_at_once_differ) {
  std::vector<float> weights(1024);
  std::mt19937_64 random(7);
  for (float& weight : weights) {
    weight = std::ldexp(static_cast<float>(random() % 8191) - 4095.0F, -16);
  }
  Bytes page(4096);
  std::memcpy(page.data(), weights.data(), page.size());
  std::vector<U64> words(512);
  std::memcpy(words.data(), page.data(), page.size());
  std::vector<U64> digests{of(page)};
  const auto digest_words = [&](const std::vector<U64>& changed) {
    digests.push_back(digest(changed.data(), 4096));
  };
  for (std::size_t i = 0; i + 3 < words.size(); i += 3) {
    for (int bit = 0; bit < 64; ++bit) {
      const U64 mask = U64{1} << bit;
      for (const std::size_t j : {i + 1, (i + 256) % 512}) {
        std::vector<U64> changed = words;
        changed[i] ^= mask;
        changed[j] ^= mask;
        digest_words(changed);
        if (bit >= 62) continue;  // adding three of it may flip one bit only, as above
        changed = words;
        changed[i] += 3 * mask;
        changed[j] -= 3 * mask;
        digest_words(changed);
      }
      std::vector<U64> changed = words;
      for (std::size_t j = i; j < i + 4; ++j) changed[j] ^= mask;
      digest_words(changed);
    }
  }
  check_all_differ(std::move(digests), Halves::any);
}

// Pairs of words that changed alike, over random content: the digest misses a pair when the two
// differences cancel. With one round less these meet; none do of the 2^33 pairs that each change
// has here, though the upper halves alone are not as even as chance.
TEST(differences_do_not_meet) {
  std::mt19937_64 random(8);
  const auto check_spread = [&](auto change) {
    std::vector<U64> differences;
    for (U64 i = 0; i < 1 << 17; ++i) {
      const U64 word = random();
      differences.push_back(mix(change(word), i % 4) - mix(word, i % 4));
      differences.back() *= i % 2 == 0 ? 1 : ~U64{0};
    }
    check_all_differ(std::move(differences), Halves::any);
  };
  for (int bit = 0; bit < 64; ++bit) {
    check_spread([&](U64 word) { return word ^ U64{1} << bit; });
  }
  for (const U64 mask : {0x8000000080000000ULL, 0x8000800080008000ULL, 0x0000000100000001ULL,
                         0xffffffff00000000ULL, 0x00000000ffffffffULL}) {
    check_spread([&](U64 word) { return word ^ mask; });
    check_spread([&](U64 word) { return word + mask; });
  }
}

TEST(every_bit_of_a_word_moves_every_bit_of_the_digest) {
  std::mt19937_64 random(9);
  constexpr int rounds = 20'000;
  double worst = 0;
  for (int bit = 0; bit < 64; ++bit) {
    std::array<int, 64> moved{};
    for (int round = 0; round < rounds; ++round) {
      std::array<U64, 4> words{random(), random(), random(), random()};
      const U64 before = digest(words.data(), sizeof(words));
      words[static_cast<std::size_t>(round % 4)] ^= U64{1} << bit;
      U64 changed = before ^ digest(words.data(), sizeof(words));
      for (int& count : moved) {
        count += static_cast<int>(changed & 1);
        changed >>= 1;
      }
    }
    for (const int count : moved) {
      worst = std::max(worst, std::abs(static_cast<double>(count) / rounds - 0.5));
    }
  }
  CHECK(worst < 0.1);  // 0.07 from bits 32 to 36, which the first round leaves alone
}

TEST(random_corruption_is_noticed) {
  std::mt19937_64 random(10);
  const Bytes page = pattern(11, 4096);
  std::vector<U64> digests{of(page)};
  for (int round = 0; round < 20'000; ++round) {
    Bytes changed = page;
    for (U64 n = random() % 64 + 1; n > 0; --n) {
      changed[random() % changed.size()] ^= static_cast<std::uint8_t>(random() % 255 + 1);
    }
    if (changed != page) digests.push_back(of(changed));
  }
  check_all_differ(std::move(digests));
}

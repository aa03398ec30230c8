// The digest and its copy against the definition, on every path, at any address, in any parts.
#include <thread>

#include "digest/streaming.h"
#include "digest_bench.h"

using namespace gpupool;

TEST(the_digests_of_some_runs_never_change) {
  Bytes counting(100);
  for (std::size_t i = 0; i < counting.size(); ++i) counting[i] = static_cast<std::uint8_t>(i);
  CHECK_EQ(of({}), U64{0});
  CHECK_EQ(of(Bytes(8)), U64{0x685f624ac2aec3b3});
  CHECK_EQ(of(Bytes(4096)), U64{0xdb1cae9299df3e26});
  CHECK_EQ(of(counting), U64{0x2ebc1f550146f8fb});
  CHECK_EQ(digest(counting.data(), 96, U64{1} << 40), U64{0xf7fcbfd1fd86e282});
}

TEST(every_path_computes_what_is_defined_at_any_address) {
  const Bytes content = pattern(1, 1200);
  for (const DigestPath& path : digest_paths()) {
    for (std::size_t offset = 0; offset < 9; ++offset) {
      for (std::size_t words = 0; words < 140; ++words) {
        const U64 first = words % 3 == 0 ? 0 : U64{0x0123456789abcdef} << (words % 8);
        const std::uint8_t* at = content.data() + offset;
        CHECK_EQ(path.run(nullptr, reinterpret_cast<const std::byte*>(at), words, first),
                 defined(at, words * 8, first));
      }
    }
  }
  for (std::size_t offset = 0; offset < 9; ++offset) {
    for (std::size_t bytes = 0; bytes < 300; ++bytes) {
      CHECK_EQ(digest(content.data() + offset, bytes, bytes * 5),
               defined(content.data() + offset, bytes, bytes * 5));
    }
  }
}

TEST(every_path_copies_just_what_it_digests) {
  // To the size from which a copy goes past the caches, and beyond it.
  constexpr std::size_t large = streaming_bytes / 8;
  for (const std::size_t words : {std::size_t{0}, std::size_t{5}, std::size_t{37}, std::size_t{300},
                                  large - 1, large, large + 61, 8 * large}) {
    const Bytes content = pattern(words, words * 8 + 8);
    for (const DigestPath& path : digest_paths()) {
      for (const std::size_t from : {0, 3, 8}) {
        for (const std::size_t to : {0, 1, 8, 16, 24, 36}) {
          Bytes target(words * 8 + 80, 0xee);
          Bytes expected = target;
          std::copy_n(content.data() + from, words * 8, expected.data() + to);
          const U64 sum =
              path.run(reinterpret_cast<std::byte*>(target.data() + to),
                       reinterpret_cast<const std::byte*>(content.data() + from), words, 7);
          CHECK_EQ(sum, defined(content.data() + from, words * 8, 7));
          CHECK(target == expected);
        }
      }
    }
  }
  const Bytes content = pattern(2, 100);
  for (std::size_t bytes = 0; bytes <= content.size(); ++bytes) {
    Bytes target(content.size() + 1, 0xee);
    CHECK_EQ(copy_with_digest(target.data(), content.data(), bytes, 9),
             defined(content.data(), bytes, 9));
    CHECK(std::equal(target.begin(), target.begin() + static_cast<long>(bytes), content.begin()));
    CHECK_EQ(target[bytes], 0xee);
  }
}

TEST(parts_add_up_in_any_order_and_from_any_thread) {
  std::mt19937_64 random(3);
  const Bytes content = pattern(3, 10'003);
  const U64 whole = of(content);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::size_t> cuts{0, content.size()};
    for (U64 i = random() % 6; i > 0; --i) cuts.push_back(random() % 1250 * 8);
    std::sort(cuts.begin(), cuts.end());
    U64 sum = 0;
    for (std::size_t i = cuts.size() - 1; i > 0; --i) {
      sum += digest(content.data() + cuts[i - 1], cuts[i] - cuts[i - 1], cuts[i - 1] / 8);
    }
    CHECK_EQ(sum, whole);
  }
  U64 first = 0;
  Bytes target(content.size());
  std::thread other([&] { first = copy_with_digest(target.data(), content.data(), 4096); });
  const U64 second =
      copy_with_digest(target.data() + 4096, content.data() + 4096, content.size() - 4096, 512);
  other.join();
  CHECK_EQ(first + second, whole);
  CHECK(target == content);
}

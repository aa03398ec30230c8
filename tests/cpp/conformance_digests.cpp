// Digests of device memory, alone and behind a copy to it.
#include "bench.h"
#include "digest/digest.h"

using namespace gpupool;

namespace {

struct Digested : Bench {
  static constexpr std::size_t room = 3 * digest_piece_bytes;
  Digested() : base(mapped(4)), sums(reinterpret_cast<std::uint64_t*>(staging() + 2 * room)) {
    std::fill_n(sums, 16, untouched);
  }
  // What the sums of `content` must be, and that none behind them was written.
  void check(const Bytes& content) const {
    std::size_t i = 0;
    for (std::size_t at = 0; at < content.size(); at += digest_piece_bytes, ++i) {
      CHECK_EQ(sums[i], gpupool::digest(content.data() + at,
                                        std::min(digest_piece_bytes, content.size() - at)));
    }
    CHECK_EQ(sums[i], untouched);
  }
  static constexpr std::uint64_t untouched = 0x5555555555555555;
  DevicePtr base;
  std::uint64_t* sums;
};

const std::size_t lengths[] = {1,
                               7,
                               8,
                               4096,
                               digest_piece_bytes - 1,
                               digest_piece_bytes,
                               digest_piece_bytes + 13,
                               3 * digest_piece_bytes};

}  // namespace

TEST(a_digest_is_of_what_the_device_holds) {
  for (const std::size_t bytes : lengths) {
    for (const std::size_t shift : {0, 8, 3}) {
      Digested all;
      const Bytes content = pattern(bytes, bytes);
      all.write(all.base + shift, content);
      CHECK_OK(all->digest(all.base + shift, bytes, all.sums, all.stream()));
      CHECK_OK(all->stream_synchronize(all.stream()));
      all.check(content);
    }
  }
}

TEST(a_digest_comes_behind_the_work_before_it) {
  Digested all;
  for (std::uint8_t round = 1; round < 10; ++round) {
    CHECK_OK(all->fill(all.base, round, all.room, all.stream()));
    CHECK_OK(all->digest(all.base, all.room, all.sums, all.stream()));
    CHECK_OK(all->fill(all.base, 0, all.room, all.stream()));
    CHECK_OK(all->stream_synchronize(all.stream()));
    all.check(Bytes(all.room, round));
  }
}

TEST(a_copy_with_a_digest_moves_exactly_its_bytes) {
  for (const std::size_t bytes : lengths) {
    Digested all;
    const Bytes content = pattern(bytes + 1, bytes);
    CHECK_OK(all->fill(all.base, 0xee, 4 * page_bytes, all.stream()));
    std::copy(content.begin(), content.end(), reinterpret_cast<std::uint8_t*>(all.staging()));
    CHECK_OK(
        all->copy_to_device_digest(all.base + 16, all.staging(), bytes, all.sums, all.stream()));
    CHECK_OK(all->stream_synchronize(all.stream()));
    all.check(content);
    Bytes expected(4 * page_bytes, 0xee);
    std::copy(content.begin(), content.end(), expected.begin() + 16);
    CHECK(all.read(all.base, 4 * page_bytes) == expected);
  }
}

TEST(a_digest_of_nothing_is_refused) {
  Digested all;
  CHECK(all->digest(all.base, 0, all.sums, all.stream()) != Status::success);
  CHECK(all->copy_to_device_digest(all.base, all.staging(), 0, all.sums, all.stream()) !=
        Status::success);
}

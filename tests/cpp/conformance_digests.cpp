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

TEST(runs_of_any_length_and_place_have_a_digest_each) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    Digested all;
    std::mt19937_64 random(seed);
    const Bytes content = pattern(seed, 4 * page_bytes);
    all.write(all.base, content);
    const std::size_t count = 1 + random() % 300;
    auto* const runs = reinterpret_cast<DeviceRun*>(all.staging() + all.room);
    auto* const sums = reinterpret_cast<std::uint64_t*>(runs + count);
    std::vector<std::uint64_t> expected;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t most = i == 0 ? digest_piece_bytes + 9 : std::size_t{1} << random() % 15;
      const std::size_t bytes = 1 + random() % most, at = random() % (content.size() - bytes);
      runs[i] = {all.base + at, bytes};
      expected.push_back(gpupool::digest(content.data() + at, bytes));
    }
    std::fill_n(sums, count + 1, all.untouched);
    CHECK_OK(all->digest_runs(runs, count, sums, all.stream()));
    CHECK_OK(all->stream_synchronize(all.stream()));
    CHECK(std::equal(expected.begin(), expected.end(), sums));
    CHECK_EQ(sums[count], all.untouched);
  }
}

TEST(digests_of_runs_come_behind_the_work_before_them) {
  Digested all;
  auto* const runs = reinterpret_cast<DeviceRun*>(all.staging() + all.room);
  runs[0] = {all.base, 100};
  runs[1] = {all.base + page_bytes, 5000};
  for (std::uint8_t round = 1; round < 10; ++round) {
    CHECK_OK(all->fill(all.base, round, all.room, all.stream()));
    CHECK_OK(all->digest_runs(runs, 2, all.sums, all.stream()));
    CHECK_OK(all->fill(all.base, 0, all.room, all.stream()));
    CHECK_OK(all->stream_synchronize(all.stream()));
    for (const std::size_t i : {0, 1}) {
      const Bytes expected(runs[i].bytes, round);
      CHECK_EQ(all.sums[i], gpupool::digest(expected.data(), expected.size()));
    }
  }
}

TEST(a_digest_of_nothing_is_refused) {
  Digested all;
  auto* const runs = reinterpret_cast<DeviceRun*>(all.staging() + all.room);
  CHECK(all->digest_runs(runs, 0, all.sums, all.stream()) != Status::success);
  CHECK(all->digest(all.base, 0, all.sums, all.stream()) != Status::success);
  CHECK(all->copy_to_device_digest(all.base, all.staging(), 0, all.sums, all.stream()) !=
        Status::success);
}

// Sub-allocation of a range of addresses, against a plain model. Nothing is behind the addresses,
// so a touch of them would crash.
#include "memory/arena.h"

#include <map>
#include <thread>

#include "bench.h"

using namespace gpupool;

namespace {

constexpr DevicePtr base = DevicePtr{7} << 40;

// What the blocks in use leave free, in order.
std::vector<std::size_t> gaps(const std::map<DevicePtr, std::size_t>& live, DevicePtr end) {
  std::vector<std::size_t> found;
  DevicePtr at = base;
  const auto note = [&](DevicePtr next) {
    CHECK(next >= at);  // else two blocks overlap
    if (next > at) found.push_back(next - at);
  };
  for (const auto& [address, bytes] : live) {
    note(address);
    at = address + bytes;
  }
  note(end);
  return found;
}

struct Model {
  explicit Model(std::uint64_t seed)
      : random(seed),
        alignment(std::size_t{1} << below(13)),
        limit(below(64 * mib)),
        arena(base, limit, alignment) {}

  std::size_t below(std::size_t bound) { return random() % bound; }
  std::size_t rounded(std::size_t bytes) const {
    return (bytes + alignment - 1) / alignment * alignment;
  }
  DevicePtr end() const { return base + limit / alignment * alignment; }

  void allocate() {
    // Sizes of all magnitudes up to 16 MiB.
    const std::size_t bytes = 1 + below(std::size_t{1} << (1 + below(24)));
    const auto before = gaps(live, end());
    const auto address = arena.allocate(bytes);
    std::size_t largest = 0;
    for (const std::size_t gap : before) largest = std::max(largest, gap);
    CHECK_EQ(address.has_value(), rounded(bytes) <= largest);
    if (!address) return;
    CHECK_EQ(*address % alignment, 0);
    CHECK(*address >= base && *address + rounded(bytes) <= end());
    CHECK(live.emplace(*address, rounded(bytes)).second);
  }
  void free() {
    if (live.empty()) return;
    const auto at = std::next(live.begin(), static_cast<std::ptrdiff_t>(below(live.size())));
    arena.free(at->first);
    live.erase(at);
  }
  void resize() {
    const std::size_t wanted = below(64 * mib);
    const std::size_t used = live.empty() ? 0 : live.rbegin()->first + live.rbegin()->second - base;
    if (wanted / alignment * alignment < used) {
      CHECK_THROWS(UsageError, arena.set_limit(wanted));
    } else {
      arena.set_limit(wanted);
      limit = wanted;
    }
  }
  void check() {
    const auto free = gaps(live, end());
    const ArenaStatistics all = arena.statistics();
    std::size_t bytes = 0, largest = 0;
    for (const auto& [address, size] : live) bytes += size;
    for (const std::size_t gap : free) largest = std::max(largest, gap);
    peak = std::max(peak, bytes);
    CHECK_EQ(all.limit_bytes, limit);
    CHECK_EQ(all.live_blocks, live.size());
    CHECK_EQ(all.live_bytes, bytes);
    CHECK_EQ(all.peak_bytes, peak);
    CHECK_EQ(all.free_blocks, free.size());  // neighbours are one
    CHECK_EQ(all.largest_free_bytes, largest);
  }

  std::mt19937_64 random;
  std::size_t alignment;
  std::size_t limit;
  Arena arena;
  std::map<DevicePtr, std::size_t> live;
  std::size_t peak = 0;
};

void run_model(std::uint64_t seed) {
  Model model(seed);
  std::size_t allocating = 5;  // of 10
  for (int step = 0; step < 3000; ++step) {
    if (step % 300 == 0) allocating = 2 + model.below(7);
    if (model.below(50) == 0) {
      model.resize();
    } else if (model.below(20) == 0) {  // most often no block
      const DevicePtr address = base + model.below(64 * mib) / 512 * 512;
      if (!model.live.contains(address)) CHECK_THROWS(UsageError, model.arena.free(address));
    } else if (model.below(10) < allocating) {
      model.allocate();
    } else {
      model.free();
    }
    model.check();
  }
  while (!model.live.empty()) model.free();
  model.check();
  model.arena.set_limit(0);
  CHECK_EQ(model.arena.statistics().free_blocks, 0);
}

}  // namespace

TEST(random_operations_agree_with_a_model) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    try {
      run_model(seed);
    } catch (const check::Failure& failure) {
      throw check::Failure("seed " + std::to_string(seed) + ": " + failure.what());
    }
  }
}

TEST(a_wrong_free_names_the_address_and_changes_nothing) {
  Arena arena(base, mib);
  const DevicePtr block = *arena.allocate(1000), other = *arena.allocate(1);
  for (const DevicePtr address : {block + 512, base - 512, base + mib, other + 512, DevicePtr{0}}) {
    CHECK_THROWS(UsageError, arena.free(address));
  }
  arena.free(block);
  try {
    arena.free(block);
    check::fail(__FILE__, __LINE__, "a block was freed twice");
  } catch (const UsageError& error) {
    CHECK(std::string(error.what()).find("0x70000000000") != std::string::npos);
  }
  CHECK_EQ(arena.statistics().live_blocks, 1);
  CHECK_EQ(arena.statistics().live_bytes, 512);
}

TEST(what_makes_no_sense_is_refused) {
  CHECK_THROWS(UsageError, Arena(base, mib, 0));
  CHECK_THROWS(UsageError, Arena(base, mib, 768));
  CHECK_THROWS(UsageError, Arena(base + 256, mib, 512));
  CHECK_THROWS(UsageError, Arena(base, ~std::size_t{0}));
  Arena arena(base, mib);
  CHECK_THROWS(UsageError, arena.allocate(0));
  CHECK(!arena.allocate(~std::size_t{0}));
  CHECK(!arena.allocate(mib + 1));
  CHECK_EQ(arena.statistics().refused, 2);
  CHECK(arena.allocate(mib) == base);
  CHECK(!arena.allocate(1));
}

TEST(large_blocks_begin_at_two_mebibytes_where_that_costs_nothing) {
  Arena arena(base, 8 * mib);
  const DevicePtr small = *arena.allocate(512);
  CHECK_EQ(small, base);
  CHECK_EQ(*arena.allocate(2 * mib), base + 6 * mib);  // the end that is aligned
  CHECK_EQ(*arena.allocate(4 * mib), base + 2 * mib);
  CHECK_EQ(*arena.allocate(mib), base + 512);  // smaller ones begin where there is room
}

TEST(a_range_grows_and_shrinks_at_its_end) {
  Arena arena(base, 4096 + 300);
  const DevicePtr first = *arena.allocate(4096);
  CHECK(!arena.allocate(1));  // the last 300 bytes are no whole unit
  CHECK_THROWS(UsageError, arena.set_limit(4095));
  arena.set_limit(8192);
  const DevicePtr second = *arena.allocate(4096);
  CHECK_EQ(second, base + 4096);
  arena.free(first);
  CHECK_THROWS(UsageError, arena.set_limit(4096));  // the second is in use, the first is not
  arena.free(second);
  arena.set_limit(0);
  CHECK(!arena.allocate(1));
  arena.set_limit(512);
  CHECK(arena.allocate(1) == base);
}

TEST(threads_share_an_arena) {
  Arena arena(base, 64 * mib);
  constexpr std::size_t unit = 512;
  std::vector<std::atomic<int>> users(64 * mib / unit);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937_64 random(seed);
      std::vector<std::pair<DevicePtr, std::size_t>> mine;
      const auto mark = [&](std::pair<DevicePtr, std::size_t> block, int by) {
        for (std::size_t at = 0; at < block.second; at += unit) {
          wrong += users[(block.first - base + at) / unit].fetch_add(by) != (by > 0 ? 0 : 1);
        }
      };
      for (int step = 0; step < 5000; ++step) {
        if (mine.size() < 50 && random() % 2 == 0) {
          const std::size_t bytes = 1 + random() % (64 * unit);
          const auto address = arena.allocate(bytes);
          if (!address) continue;
          mine.push_back({*address, bytes});
          mark(mine.back(), 1);
        } else if (!mine.empty()) {
          std::swap(mine[random() % mine.size()], mine.back());
          mark(mine.back(), -1);
          arena.free(mine.back().first);
          mine.pop_back();
        }
      }
      for (const auto& block : mine) {
        mark(block, -1);
        arena.free(block.first);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(wrong.load(), 0);
  CHECK_EQ(arena.statistics().free_blocks, 1);
  CHECK_EQ(arena.statistics().largest_free_bytes, 64 * mib);
}

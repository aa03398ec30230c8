// Sets of runs against a bit for every byte.
#include <random>

#include "bench.h"

using namespace gpupool;

namespace {

constexpr std::size_t size = 64;
using Bits = std::vector<bool>;

std::vector<Run> runs_of(const Bits& bits, bool value, std::size_t end) {
  std::vector<Run> runs;
  for (std::size_t i = 0; i < end; ++i) {
    if ((i < bits.size() && bits[i]) != value) continue;
    if (!runs.empty() && runs.back().end == i) {
      ++runs.back().end;
    } else {
      runs.push_back({i, i + 1});
    }
  }
  return runs;
}

void check_same(const RunSet& set, const Bits& bits) {
  CHECK(set.runs() == runs_of(bits, true, size));
  for (const std::size_t end : {std::size_t{0}, size / 2, size, size + 10}) {
    CHECK(set.gaps(end) == runs_of(bits, false, end));
  }
  const auto count = static_cast<std::size_t>(std::count(bits.begin(), bits.end(), true));
  CHECK_EQ(set.bytes(), count);
  CHECK_EQ(set.empty(), count == 0);
}

}  // namespace

TEST(random_operations_agree_with_a_bit_vector) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    std::mt19937_64 random(seed);
    const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
    RunSet set;
    Bits bits(size, false);
    for (int step = 0; step < 100; ++step) {
      Run run{below(size + 1), below(size + 1)};
      if (below(8) != 0 && run.begin > run.end) std::swap(run.begin, run.end);
      const std::size_t kind = below(10);
      if (kind == 0) {
        set.clear();
        bits.assign(size, false);
      } else if (kind < 3) {
        RunSet other;
        other.add(run);
        other.add({below(size), size});
        set.add(other);
        for (const Run& part : other.runs()) {
          std::fill(bits.begin() + part.begin, bits.begin() + part.end, true);
        }
      } else {
        const bool add = kind < 7;
        if (add) {
          set.add(run);
        } else {
          set.remove(run);
        }
        for (std::size_t i = run.begin; i < run.end; ++i) bits[i] = add;
      }
      check_same(set, bits);
    }
  }
}

TEST(neighbours_become_one_run) {
  RunSet set;
  set.add({0, 4});
  set.add({8, 12});
  set.add({4, 8});
  CHECK(set.runs() == std::vector<Run>{{0, 12}});
}

TEST(a_set_added_to_itself_stays_as_it_is) {
  RunSet set;
  set.add({1, 2});
  set.add({5, 9});
  set.add(set);
  CHECK(set.runs() == (std::vector<Run>{{1, 2}, {5, 9}}));
}

TEST(runs_are_the_same_only_with_both_ends) {
  CHECK((Run{1, 2} == Run{1, 2}));
  CHECK((Run{1, 2} != Run{0, 2}));
  CHECK((Run{1, 2} != Run{1, 3}));
}

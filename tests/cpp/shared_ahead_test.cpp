// Pages of others that come ahead of use, among those that are filled.
#include <bit>
#include <random>

#include "model_bench.h"
#include "real_gpu.h"

using namespace gpupool;

namespace {

// A runtime, weights of whole pages and a part of one, and a workspace: the pages that can be warm.
constexpr std::size_t whole = 5, first = 1, warmable = first + whole + 1;

struct Twin : Subject {
  Twin(Machine& machine, OwnerId owner, Verify verify) : Subject(machine, owner, verify) {
    add(Tag::runtime, 100'000);
    Region& weights = add(Tag::weights, whole * page_bytes + 5000);
    add(Tag::workspace, page_bytes);
    expected[1] = pattern(7, weights.bytes());
    std::memcpy(weights.image(), expected[1].data(), weights.bytes());
    memory.adopt_image(weights);
    memory.seal(weights);
  }
  Region& weights() { return *regions[1]; }
};

// Which of the whole pages are had together: none, the first, some in the middle, the last, all.
constexpr unsigned none = 0, all = (1u << whole) - 1;
constexpr unsigned some[] = {none, 0b00001, 0b00100, 0b10000, 0b10110, all};

struct Scene {
  explicit Scene(Verify verify = Verify::always)
      : one(machine, 1, verify), other(machine, 2, verify) {
    machine.soil(0xC5);
    one.swap_in();
    behind = one.memory.mapped_pages(one.weights());
  }
  // Of places [begin, end) the bits of `which` say that they are had together with `one`.
  std::vector<SharedPage> given(std::size_t begin, std::size_t end, unsigned which) {
    std::vector<SharedPage> pages;
    for (std::size_t at = begin; at < end; ++at) {
      if (at < first || at >= first + whole || !(which >> (at - first) & 1)) continue;
      pages.push_back({at, behind[at - first]});
      for (const PageId id : machine.pool.owned(1)) {
        if (machine.pool.page(id) == pages.back().page) machine.pool.share(2, {&id, 1});
      }
    }
    return pages;
  }
  // The next places until `end`.
  SwapReport warm(std::size_t end, unsigned which, const std::stop_token& stop = {}) {
    const std::size_t begin = other.memory.warm_pages();
    const std::vector<SharedPage> shared = given(begin, end, which);
    const auto own = machine.acquire(2, end - begin - shared.size());
    try {
      return other.memory.warm(own, 0, stop, shared);
    } catch (...) {
      if (!other.memory.torn()) other.give_back();
      throw;
    }
  }
  Machine machine{2 * (warmable + 1)};
  Twin one, other;
  std::vector<PagePtr> behind;
};

}  // namespace

// Whichever they are, and however the places are cut into batches.
TEST(shared_pages_come_ahead_at_their_places) {
  std::mt19937 random(1);
  for (const Verify verify : {Verify::always, Verify::off}) {
    for (const unsigned which : some) {
      Scene scene(verify);
      const std::size_t free = scene.machine.pool.free_pages();
      std::size_t copied = 0, shared = 0, verified = 0;
      while (scene.other.memory.warm_pages() < warmable) {
        const std::size_t left = warmable - scene.other.memory.warm_pages();
        const SwapReport report = scene.warm(warmable - left + 1 + random() % left, which);
        copied += report.copied_bytes;
        shared += report.shared_bytes;
        verified += report.verified_bytes;
      }
      const auto count = static_cast<std::size_t>(std::popcount(which));
      CHECK_EQ(shared, count * page_bytes);
      CHECK_EQ(copied, scene.other.weights().bytes() - shared);  // a runtime that was never saved
      CHECK_EQ(verified, verify == Verify::off ? 0 : copied);
      const SwapReport rest = scene.other.swap_in();
      CHECK_EQ(rest.verified_bytes, verify == Verify::off ? 0 : scene.other.weights().bytes());
      CHECK_EQ(rest.copied_bytes, 0);
      CHECK_EQ(scene.machine.pool.free_pages(), free - warmable - 1 + count);
      scene.one.check_content();
      scene.other.check_content();
      scene.one.swap_out();
      scene.machine.soil(0x77);
      scene.other.check_content();
    }
  }
}

// The rest of the places are filled by the swap-in, with what is shared of those.
TEST(shared_pages_are_on_both_sides_of_a_swap_in) {
  for (std::size_t ahead = 0; ahead <= warmable; ++ahead) {
    Scene scene;
    const unsigned which = 0b10110;
    scene.warm(ahead, which);
    const std::vector<SharedPage> shared = scene.given(ahead, warmable, which);
    const auto own = scene.machine.acquire(2, warmable + 1 - ahead - shared.size());
    CHECK_EQ(scene.other.memory.swap_in(own, 0, {}, shared).shared_bytes,
             shared.size() * page_bytes);
    scene.one.check_content();
    scene.other.check_content();
  }
}

TEST(nobody_writes_to_what_came_ahead) {
  if (left_out_on_a_gpu("writing to what is mapped for reading alone, see sharing_test.cpp"))
    return;
  Scene scene;
  Bench& bench = scene.machine.bench;
  for (const std::size_t end : {std::size_t{3}, std::size_t{5}, warmable}) {
    scene.warm(end, 0b01010);
    for (std::size_t i = 0; i < end - first; ++i) {
      const DevicePtr page = scene.other.weights().address() + i * page_bytes;
      CHECK_EQ(bench->fill(page, 1, 16, bench.stream()), Status::invalid_value);
    }
  }
}

TEST(what_is_shared_ahead_is_of_the_pages_that_come) {
  Scene scene;
  scene.warm(2, 0b1);
  const auto refuses = [&](std::size_t own, std::size_t clean, std::vector<SharedPage> shared) {
    const auto pages = scene.machine.acquire(2, own);
    CHECK_THROWS(UsageError, scene.other.memory.warm(pages, clean, {}, shared));
    scene.other.give_back();
    CHECK_EQ(scene.other.memory.warm_pages(), 2);
  };
  refuses(0, 0, {{0, scene.behind[1]}});                        // not sealed
  refuses(1, 0, {{1, scene.behind[0]}});                        // there already
  refuses(0, 0, {{3, scene.behind[2]}});                        // behind what comes
  refuses(4, 0, {{6, scene.behind[5]}});                        // in part
  refuses(5, 0, {{2, scene.behind[1]}});                        // more than can be warm
  refuses(0, 1, {{2, scene.behind[1]}});                        // not clean
  refuses(0, 0, {{2, scene.behind[1]}, {2, scene.behind[2]}});  // twice at one place
  refuses(0, 0, {{2, scene.behind[1]}, {3, scene.behind[1]}});  // at two places
  refuses(0, 0, {{2, scene.behind[0]}, {3, scene.behind[2]}});  // which it has
  refuses(0, 0, {{2, nullptr}});
  scene.warm(warmable, 0b10010);
  scene.other.swap_in();
  scene.other.check_content();
  scene.one.check_content();
}

TEST(a_page_that_is_wrong_is_found_as_the_model_comes_in_and_left_alone) {
  for (std::size_t wrong = 0; wrong < whole; ++wrong) {
    Scene scene;
    Bench& bench = scene.machine.bench;
    const DevicePtr place = scene.one.weights().address() + wrong * page_bytes;
    CHECK_OK(bench->set_access(place, page_bytes));
    const std::uint8_t other_byte = bench.read(place + 77, 1)[0] ^ 1;
    bench.write(place + 77, {other_byte});
    scene.warm(first + wrong, all);
    scene.warm(warmable, all);
    try {
      scene.other.swap_in();
      CHECK(false);
    } catch (const DamagedImage& error) {
      CHECK(error.pages() == std::vector<PageHandle>{scene.behind[wrong]->handle()});
    }
    CHECK_EQ(scene.other.memory.warm_pages(), warmable);
    CHECK_EQ(bench.read(place + 77, 1)[0], other_byte);
    scene.other.cool(warmable);
    scene.warm(warmable, all & ~(1u << wrong));
    scene.other.swap_in();
    scene.other.check_content();
  }
}

TEST(a_batch_with_shared_pages_that_is_stopped_changes_nothing) {
  for (const unsigned which : some) {
    Scene scene;
    scene.warm(2, which);
    const std::size_t free = scene.machine.pool.free_pages();
    std::stop_source stop;
    stop.request_stop();
    // What copies nothing has nothing to stop.
    if (which == all) continue;
    CHECK_THROWS(Cancelled, scene.warm(6, which, stop.get_token()));
    CHECK_EQ(scene.other.memory.warm_pages(), 2);
    CHECK_EQ(scene.machine.pool.free_pages(), free);
    scene.one.check_content();
    scene.other.cool(2);
    scene.other.check_out();
    scene.other.swap_in();
    scene.other.check_content();
  }
}

TEST(a_fault_in_any_batch_with_shared_pages_can_be_met_again) {
  for (const unsigned which : {0b00101u, all}) {
    for (std::uint64_t nth = 1;; ++nth) {
      Scene scene;
      scene.machine.plan->arm(nth, Status::unknown, false);
      bool failed = false;
      for (const std::size_t end : {std::size_t{3}, warmable}) {
        const std::size_t before = scene.other.memory.warm_pages();
        try {
          scene.warm(end, which);
        } catch (const DriverError&) {
          failed = true;
          CHECK(!scene.other.memory.torn());
          CHECK_EQ(scene.other.memory.warm_pages(), before);
          scene.one.check_content();
          scene.warm(end, which);
        }
      }
      scene.machine.plan->disarm();
      scene.other.swap_in();
      scene.one.check_content();
      scene.other.check_content();
      if (!failed) break;
    }
  }
}

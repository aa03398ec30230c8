// Clean and dirty pages, and the scrubber that turns the one into the other, also when calls fail.
#include "transfer/scrub.h"

#include <chrono>
#include <thread>

#include "bench.h"
#include "driver/fault.h"
#include "hooked.h"

using namespace gpupool;

namespace {

constexpr std::size_t pages = 6;

struct Pool {
  Pool() : faulty(with_faults(hooked, plan)) {
    pool = std::make_shared<PagePool>(faulty, pages * page_bytes, page_bytes);
  }
  // The content of a page, seen at an address of its own.
  Bytes content(PageId id) {
    const auto place = std::make_shared<const Reservation>(bench.driver(), page_bytes);
    Mapping mapping(bench.driver(), place, {pool->page(id)});
    mapping.map();
    return bench.read(place->address(), page_bytes);
  }
  void soil(OwnerId owner) {
    for (const PageId id : pool->owned(owner)) {
      const auto place = std::make_shared<const Reservation>(bench.driver(), page_bytes);
      Mapping mapping(bench.driver(), place, {pool->page(id)});
      mapping.map();
      bench.write(place->address(), pattern(id + 1, page_bytes));
    }
  }
  void check_adds_up() {
    const PoolStatistics now = pool->statistics();
    CHECK_EQ(now.created, now.clean + now.dirty + now.scrubbing + now.withheld + now.owned);
    CHECK_EQ(now.total, pages);
    CHECK_EQ(pool->free_pages(), now.clean + now.dirty + now.scrubbing + now.total - now.created);
  }
  Bench bench;
  std::shared_ptr<Hooked> hooked = std::make_shared<Hooked>(bench.driver());
  std::shared_ptr<FaultPlan> plan = std::make_shared<FaultPlan>();
  DriverPtr faulty;
  std::shared_ptr<PagePool> pool;
};

}  // namespace

TEST(pages_are_dirty_until_they_are_scrubbed) {
  Pool p;
  p.pool->create_ahead(4);
  CHECK_EQ(p.pool->statistics().dirty, 4);
  CHECK_EQ(p.pool->statistics().owned, 0);
  Scrubber scrubber(p.faulty, p.pool, 3);
  CHECK_EQ(scrubber.scrub_free(), 3);
  CHECK_EQ(scrubber.scrub_free(), 1);
  CHECK_EQ(scrubber.scrub_free(), 0);
  CHECK_EQ(p.pool->statistics().clean, 4);
  const auto held = p.pool->acquire(1, 5);  // four clean ones first, and one that is made now
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK_EQ(p.pool->is_clean(held[i]), i < 4);
    CHECK_EQ(all_are(p.content(held[i]), 0), i < 4);
  }
  p.soil(1);
  p.pool->give_back(1, held);
  CHECK_EQ(p.pool->statistics().dirty, 5);
  while (scrubber.scrub_free() > 0) {
  }
  for (const PageId id : p.pool->acquire(2, 5)) CHECK(all_are(p.content(id), 0));
  p.check_adds_up();
}

TEST(what_is_held_is_scrubbed_for_its_owner) {
  Pool p;
  const auto held = p.pool->acquire(1, 5);
  p.soil(1);
  Scrubber scrubber(p.faulty, p.pool, 2);
  CHECK_THROWS(UsageError, scrubber.scrub_owned(2, held));
  const std::vector<PageId> twice{held[0], held[0]};
  CHECK_THROWS(UsageError, scrubber.scrub_owned(1, twice));
  scrubber.scrub_owned(1, held);
  for (const PageId id : held) CHECK(p.pool->is_clean(id) && all_are(p.content(id), 0));
  CHECK_EQ(p.pool->owned(1).size(), 5);
}

TEST(bad_figures_are_refused) {
  Pool p;
  CHECK_THROWS(UsageError, Scrubber(p.faulty, p.pool, 0));
  CHECK_THROWS(UsageError, p.pool->create_ahead(pages + 1));
  CHECK_THROWS(UsageError, PagePool(p.faulty, std::size_t{1} << 60, page_bytes));
  CHECK_THROWS(UsageError, p.pool->is_clean(0));
  CHECK_THROWS(UsageError, p.pool->begin_scrub_owned(1, std::vector<PageId>{0}));
  CHECK_EQ(p.pool->created_pages(), 0);
  p.pool->create_ahead(pages);
  p.pool->create_ahead(2);  // there are more already
  CHECK_EQ(p.pool->created_pages(), pages);
}

// All six pages are asked for while four of five are being scrubbed. From when the sixth is made
// the pool's lock is not let go but to wait, so `end` comes when the waiter waits.
template <typename End>
std::vector<PageId> acquire_all_waiting(Pool& p, End end) {
  p.pool->create_ahead(pages - 1);
  const auto taken = p.pool->begin_scrub(4);
  CHECK_EQ(p.pool->free_pages(), pages);
  std::vector<PageId> got;
  std::thread waiter([&] {
    try {
      got = p.pool->acquire(2, pages);
    } catch (const UsageError&) {
    }
  });
  while (p.pool->created_pages() < pages) std::this_thread::yield();
  end(taken);
  waiter.join();
  return got;
}

TEST(who_needs_pages_being_scrubbed_waits_for_them) {
  Pool p;
  const auto got =
      acquire_all_waiting(p, [&](const auto& taken) { p.pool->end_scrub(taken, true); });
  CHECK_EQ(got.size(), pages);
  CHECK(p.pool->is_clean(got[0]));
  p.check_adds_up();
}

TEST(who_waits_for_pages_that_are_withheld_is_told) {
  Pool p;
  std::vector<PageId> withheld;
  const auto got = acquire_all_waiting(p, [&](const auto& taken) {
    p.pool->withhold(taken);
    withheld = taken;
  });
  CHECK(got.empty());
  CHECK_EQ(p.pool->free_pages(), 2);
  CHECK_EQ(p.pool->statistics().withheld, 4);
  p.pool->release(withheld);
  CHECK_EQ(p.pool->free_pages(), pages);
  CHECK_EQ(p.pool->statistics().clean, 0);
}

TEST(what_is_being_scrubbed_cannot_be_given_back) {
  Pool p;
  const auto held = p.pool->acquire(1, 3);
  p.soil(1);
  Scrubber scrubber(p.faulty, p.pool, 2);
  int refused = 0, fills = 0, held_still = 0;
  p.hooked->before = [&](DriverCall call) {
    if (call != DriverCall::fill) return;
    ++fills;
    refused += check::throws<UsageError>([&] { p.pool->give_back(1, {{held[2]}}); });
    refused += check::throws<UsageError>([&] { p.pool->give_back_all(1); });
    refused += check::throws<UsageError>([&] { p.pool->acquire(2, 4); });
    held_still += p.pool->owned(1).size() == 3;
  };
  scrubber.scrub_owned(1, held);
  CHECK_EQ(fills, 2);
  CHECK_EQ(refused, 6);
  CHECK_EQ(held_still, 2);
  p.pool->give_back_all(1);
  CHECK_EQ(p.pool->free_pages(), pages);
}

TEST(any_later_call_takes_back_what_was_withheld) {
  Pool p;
  const auto held = p.pool->acquire(1, 2);
  Scrubber scrubber(p.faulty, p.pool, 2);
  for (const bool owned : {false, true}) {
    p.plan->arm_call(DriverCall::stream_synchronize, 1, FaultPlan::every_call, Status::unknown);
    CHECK_THROWS(DriverError, scrubber.scrub_owned(1, p.pool->acquire(1, 1)));
    CHECK_THROWS(DriverError, scrubber.scrub_owned(1, {}));  // not yet
    CHECK_EQ(p.pool->statistics().withheld, 1);
    p.plan->disarm();
    if (owned) {
      scrubber.scrub_owned(1, {});
    } else {
      CHECK_EQ(scrubber.scrub_free(), 1);  // it is free then, and dirty
    }
    CHECK_EQ(p.pool->statistics().withheld, 0);
    CHECK_EQ(p.pool->owned(1).size(), held.size());
  }
}

TEST(a_scrubber_that_ends_leaves_withheld_what_stays_mapped) {
  for (std::uint64_t refused = 0; refused < 7; ++refused) {
    Pool p;
    p.pool->create_ahead(4);
    int unmaps = 0;  // that were not refused
    p.hooked->before = [&](DriverCall call) { unmaps += call == DriverCall::unmap; };
    p.plan->arm_call(DriverCall::unmap, 1, refused, Status::unknown);
    {
      Scrubber scrubber(p.faulty, p.pool, 2);
      CHECK_EQ(check::throws<DriverError>([&] { scrubber.scrub_free(); }), refused > 0);
    }
    CHECK_EQ(unmaps, refused < 4 ? 1 : 0);
    CHECK_EQ(p.pool->statistics().withheld, unmaps == 0 ? 2 : 0);
    CHECK_EQ(p.pool->acquire(1, p.pool->free_pages()).size(), unmaps == 0 ? 4 : 6);
    p.check_adds_up();
  }
}

TEST(one_thread_scrubs_at_a_time) {
  Pool p;
  const auto held = p.pool->acquire(1, 2);
  Scrubber scrubber(p.faulty, p.pool, 2);
  const auto first = std::this_thread::get_id();
  std::atomic<bool> second_calls{false};
  std::atomic<bool> second_fails{false};
  bool together = false;
  std::jthread second;
  p.hooked->before = [&](DriverCall call) {
    if (std::this_thread::get_id() != first) second_calls = true;
    if (call != DriverCall::fill || second.joinable()) return;
    second = std::jthread([&] {
      try {
        scrubber.scrub_owned(1, {{held[1]}});
      } catch (const std::exception&) {
        second_fails = true;
      }
    });
    // It gets the time to come in, were it let in; what is right takes all of it.
    const auto enough = std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
    while (!second_calls && std::chrono::steady_clock::now() < enough) std::this_thread::yield();
    together = second_calls;
  };
  scrubber.scrub_owned(1, {{held[0]}});
  second.join();
  CHECK(!together && !second_fails);
  CHECK(second_calls);
  for (const PageId id : held) CHECK(p.pool->is_clean(id));
}

// Whatever fails, a page that is called clean reads as zeros, none is lost for good, and none that
// may still be written to is anybody's.
TEST(any_call_may_fail) {
  for (const bool owned : {false, true}) {
    for (const bool persistent : {false, true}) {
      for (std::uint64_t nth = 1, injected = 1; injected > 0; ++nth) {
        Pool p;
        auto held = p.pool->acquire(1, 5);
        p.soil(1);
        if (!owned) p.pool->give_back_all(1);
        Scrubber scrubber(p.faulty, p.pool, 2);
        p.plan->arm(nth, Status::unknown, persistent);
        const auto scrub = [&] {
          if (owned) return scrubber.scrub_owned(1, held);
          while (scrubber.scrub_free() > 0) {
          }
        };
        try {
          scrub();
        } catch (const DriverError&) {
        }
        injected = p.plan->injected();
        p.check_adds_up();
        p.plan->disarm();
        if (owned) {  // what was withheld is nobody's any more
          held = p.pool->owned(1);
        }
        const std::size_t withheld = p.pool->statistics().withheld;
        const std::size_t free = p.pool->free_pages();
        scrubber.settle();
        CHECK_EQ(p.pool->statistics().withheld, 0);
        CHECK_EQ(p.pool->free_pages(), free + withheld);
        scrub();
        p.check_adds_up();
        if (!owned) held = p.pool->acquire(1, 5);
        for (const PageId id : held) CHECK(p.pool->is_clean(id) && all_are(p.content(id), 0));
        p.pool->give_back_all(1);
        CHECK_EQ(p.pool->free_pages(), pages);
      }
    }
  }
}

TEST(threads_scrub_and_acquire) {
  Pool p;
  Scrubber scrubber(p.faulty, p.pool, 2);
  std::atomic<bool> over{false};
  std::atomic<int> dirty{0};
  std::thread background([&] {
    while (!over) scrubber.scrub_free();
  });
  for (int round = 0; round < 100; ++round) {
    const auto held = p.pool->acquire(1, 1 + static_cast<std::size_t>(round) % pages);
    for (const PageId id : held) {
      if (p.pool->is_clean(id)) dirty += !all_are(p.content(id), 0);
    }
    p.soil(1);
    p.pool->give_back_all(1);
  }
  over = true;
  background.join();
  CHECK_EQ(dirty.load(), 0);
  p.check_adds_up();
}

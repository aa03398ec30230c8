// Slabs made of a pool's pages: zeros at first, apart from everybody else's, and none lost.
#include "transfer/page_slabs.h"

#include <functional>

#include "driver/fault.h"
#include "failing_new.h"
#include "image/host_slabs.h"
#include "slab_bench.h"
#include "transfer/scrub.h"

using namespace gpupool;

namespace {

constexpr OwnerId owner = 7;
constexpr OwnerId other_owner = 8;

// Makes every page of the pool, and leaves something in them.
void soil(Bench& bench, PagePool& pool) {
  const auto all = pool.acquire(other_owner, pool.total_pages());
  for (const PageId id : all) {
    const auto place = std::make_shared<const Reservation>(bench.driver(), page_bytes);
    Mapping mapping(bench.driver(), place, {pool.page(id)});
    mapping.map();
    bench.write(place->address(), pattern(id + 1, page_bytes));
  }
  pool.give_back(other_owner, all);
}

}  // namespace

TEST(device_blocks_hold_what_is_put_in) {
  Bench bench;
  const auto pool = std::make_shared<PagePool>(bench.driver(), 4 * page_bytes, page_bytes);
  const auto source = std::make_shared<PageSlabs>(bench.driver(), pool, 1, 2);
  const auto slabs = SlabAllocator::create(source, {{page_bytes / 4}, 2});
  std::vector<BlockHandle> all;
  for (std::uint64_t i = 0; i < 16; ++i) {
    all.push_back(slabs->allocate(0));
    bench.write(slabs->address_of(all.back()), pattern(i, page_bytes / 4));
  }
  CHECK_EQ(pool->free_pages(), 0);
  for (std::uint64_t i = 0; i < 16; ++i) {
    CHECK(bench.read(slabs->address_of(all[i]), page_bytes / 4) == pattern(i, page_bytes / 4));
    slabs->free(all[i]);
  }
  slabs->trim();
  CHECK_EQ(pool->free_pages(), 4);
  CHECK_THROWS(UsageError, source->release(1));
  CHECK_THROWS(UsageError, HostSlabs(bench.driver(), mib).release(1));
  CHECK_THROWS(UsageError, PageSlabs(bench.driver(), pool, 1, 0));
}

TEST(a_slab_begins_as_zeros) {
  Bench bench;
  const auto pool = std::make_shared<PagePool>(bench.driver(), 4 * page_bytes, page_bytes);
  soil(bench, *pool);
  PageSlabs source(bench.driver(), pool, owner, 2);
  const Bytes zeros(2 * page_bytes);
  for (int round = 0; round < 3; ++round) {
    const DevicePtr first = source.acquire(), second = source.acquire();
    for (const DevicePtr run : {first, second}) {
      CHECK(bench.read(run, 2 * page_bytes) == zeros);
      bench.write(run, pattern(round, 2 * page_bytes));
    }
    source.release(first);
    source.release(second);
  }
}

TEST(a_slab_is_zeros_before_anybody_has_it) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const auto plan = std::make_shared<FaultPlan>();
    const auto stepped = host_device(open_stepped(seed, page_bytes));
    const DriverPtr driver = with_faults(stepped, plan);
    const auto pool = std::make_shared<PagePool>(driver, 2 * page_bytes, page_bytes);
    PageSlabs source(driver, pool, owner, 2);
    source.release(source.acquire());
    for (std::uint64_t nth = 1;; ++nth) {
      CHECK(nth < 20);
      plan->arm(nth, Status::unknown, false);
      DevicePtr run = 0;
      try {
        run = source.acquire();
      } catch (const DriverError&) {
        // What was under way ended before the pages were anybody else's.
        CHECK_EQ(stepped->pending(), 0);
        CHECK(pool->owned(owner).empty());
      }
      plan->disarm();
      const bool failed = run == 0;
      if (failed) run = source.acquire();
      CHECK_EQ(stepped->pending(), 0);
      source.release(run);
      if (!failed) break;
    }
  }
}

TEST(slabs_of_device_pages_lose_none_to_any_failed_allocation) {
  for (std::uint64_t nth = 1;; ++nth) {
    CHECK(nth < 500);
    const DriverPtr driver = open_host_driver();
    const auto pool = std::make_shared<PagePool>(driver, 4 * page_bytes, page_bytes);
    PageSlabs source(driver, pool, owner, 2);
    std::vector<DevicePtr> runs;
    runs.reserve(2);
    fail_allocations(nth, false);
    for (int i = 0; i < 2; ++i) {
      try {
        runs.push_back(source.acquire());
      } catch (const std::bad_alloc&) {
      } catch (const DriverError& error) {  // what the host driver makes of it
        CHECK_EQ(error.status(), Status::out_of_memory);
      }
    }
    for (const DevicePtr run : runs) source.release(run);
    bad_alloc_at = 0;
    const bool met = bad_allocs > 0;
    for (int i = 0; i < 2; ++i) source.release(source.acquire());
    CHECK(pool->owned(owner).empty());
    if (!met) break;
  }
}

namespace {

// A driver that lets a test look around while it unmaps, and fails as it is told.
class Watched final : public Driver {
 public:
#define GPUPOOL_PASS_ON(name, params, args, needs_context)                                    \
  Status name params noexcept override {                                                      \
    return answer(DriverCall::name) == Status::success ? inner_->name args : Status::unknown; \
  }
  GPUPOOL_DRIVER_CALLS(GPUPOOL_PASS_ON)
#undef GPUPOOL_PASS_ON
  std::int64_t now_ns() const noexcept override { return inner_->now_ns(); }
  DeviceKind kind() const noexcept override { return inner_->kind(); }
  int ordinal() const noexcept override { return inner_->ordinal(); }

  std::function<void()> at_unmap;
  int maps_before_failure = -1;
  int unmaps_to_fail = 0;

 private:
  Status answer(DriverCall call) noexcept {
    if (call == DriverCall::map && maps_before_failure >= 0 && maps_before_failure-- == 0) {
      return Status::unknown;
    }
    if (call == DriverCall::unmap) {
      if (at_unmap) at_unmap();
      if (unmaps_to_fail > 0) return --unmaps_to_fail, Status::unknown;
    }
    return Status::success;
  }
  const DriverPtr inner_ = open_host_driver();
};

}  // namespace

TEST(pages_of_a_slab_are_nobody_elses_while_they_are_mapped) {
  for (const bool fails : {false, true}) {
    const auto driver = std::make_shared<Watched>();
    const auto pool = std::make_shared<PagePool>(driver, 2 * page_bytes, page_bytes);
    PageSlabs source(driver, pool, owner, 2);
    int unmaps = 0, wrong = 0;
    driver->at_unmap = [&] {
      ++unmaps;
      wrong += pool->free_pages() != 0;
    };
    if (fails) {
      driver->maps_before_failure = 1;  // of two, and the way back is barred for a while
      driver->unmaps_to_fail = 1;
      CHECK_THROWS(DriverError, source.acquire());
      CHECK_EQ(unmaps, 2);
    } else {
      source.release(source.acquire());
      CHECK_EQ(unmaps, 1);
    }
    CHECK_EQ(wrong, 0);
    CHECK_EQ(pool->free_pages(), 2);
    driver->at_unmap = nullptr;
  }
}

TEST(pages_that_cannot_go_back_after_a_failure_are_used_first) {
  for (std::uint64_t nth = 1;; ++nth) {
    CHECK(nth < 200);
    const auto driver = std::make_shared<Watched>();
    const auto pool = std::make_shared<PagePool>(driver, 2 * page_bytes, page_bytes);
    PageSlabs source(driver, pool, owner, 2);
    driver->maps_before_failure = 1;
    bad_allocs = 0;
    driver->at_unmap = [&] { bad_alloc_at = nth; };  // from the way back on
    try {
      static_cast<void>(source.acquire());
    } catch (const std::bad_alloc&) {
    } catch (const DriverError&) {
    }
    bad_alloc_at = 0;
    driver->at_unmap = nullptr;
    source.release(source.acquire());
    CHECK(pool->owned(owner).empty());
    if (bad_allocs == 0) break;
  }
}

TEST(a_slab_that_stayed_begins_as_zeros_too) {
  const auto driver = std::make_shared<Watched>();
  Bench bench(driver);
  const auto pool = std::make_shared<PagePool>(driver, 2 * page_bytes, page_bytes);
  pool->create_ahead(2);
  CHECK_EQ(Scrubber(driver, pool, 2).scrub_free(), 2);  // nothing to zero at first
  PageSlabs source(driver, pool, owner, 2);
  const DevicePtr run = source.acquire();
  bench.write(run, pattern(1, 2 * page_bytes));
  bad_allocs = 0;
  driver->at_unmap = [] { bad_alloc_at = 1; };
  source.release(run);
  bad_alloc_at = 0;
  driver->at_unmap = nullptr;
  CHECK_EQ(bad_allocs, 1);
  CHECK_EQ(pool->owned(owner).size(), 2);
  CHECK_EQ(source.acquire(), run);
  CHECK(bench.read(run, 2 * page_bytes) == Bytes(2 * page_bytes));
  source.release(run);
  CHECK(pool->owned(owner).empty());
}

// Mappings: all of them or none, again at the same place, and away in the right order.
#include "bench.h"
#include "driver/fault.h"
#include "hooked.h"
#include "ledger.h"
#include "memory/memory.h"
#include "real_gpu.h"

using namespace gpupool;

namespace {

struct Place {
  explicit Place(std::size_t pages = 3) {
    faulty = with_faults(bench.driver(), plan);
    reservation = std::make_shared<const Reservation>(faulty, pages * page_bytes);
    for (std::size_t i = 0; i < pages; ++i) held.push_back(Page::create(faulty, page_bytes));
  }
  DevicePtr base() const { return reservation->address(); }
  bool touchable() {
    return bench->fill(base(), 1, 16, bench.stream()) == Status::success &&
           bench->stream_synchronize(bench.stream()) == Status::success;
  }
  bool untouchable() {
    static const bool asks = !left_out_on_a_gpu(
        "touching addresses with nothing behind them: a fault would fail all later tests");
    return !asks || !touchable();
  }
  Bench bench;
  std::shared_ptr<FaultPlan> plan = std::make_shared<FaultPlan>();
  DriverPtr faulty;
  ReservationPtr reservation;
  std::vector<PagePtr> held;
};

}  // namespace

TEST(pages_must_be_of_one_size_and_fit) {
  Place place;
  CHECK_THROWS(UsageError, Mapping(place.faulty, place.reservation, {}));
  auto four = place.held;
  four.push_back(Page::create(place.faulty, page_bytes));
  CHECK_THROWS(UsageError, Mapping(place.faulty, place.reservation, four));
  const PagePtr wide = Page::create(place.faulty, 2 * page_bytes);
  CHECK_THROWS(UsageError, Mapping(place.faulty, place.reservation, {place.held[0], wide}));
}

TEST(pages_keep_their_content_when_mapped_again) {
  Place place;
  Mapping mapping(place.faulty, place.reservation, place.held);
  CHECK(!mapping.mapped());
  mapping.map();
  mapping.map();  // already there
  CHECK(mapping.mapped());
  place.bench.write(place.base(), pattern(1, 3 * page_bytes));
  mapping.unmap();
  mapping.unmap();
  CHECK(!mapping.mapped() && place.untouchable());
  mapping.map();
  CHECK(place.bench.read(place.base(), 3 * page_bytes) == pattern(1, 3 * page_bytes));
}

TEST(a_failed_map_leaves_nothing_mapped) {
  for (const bool persistent : {false, true}) {
    for (std::uint64_t nth = 1; nth <= 4; ++nth) {  // three maps and a set_access
      Place place;
      Mapping mapping(place.faulty, place.reservation, place.held);
      place.plan->arm(nth, Status::out_of_memory, persistent);
      CHECK_THROWS(DriverError, mapping.map());
      CHECK(!mapping.mapped());
      CHECK(place.untouchable());
      place.plan->disarm();
      if (!persistent) {  // with a persistent fault the way back is barred as well, until now
        for (std::size_t i = 0; i < 3; ++i) {
          CHECK_EQ(place.bench->unmap(place.base() + i * page_bytes, page_bytes),
                   Status::invalid_value);
        }
      }
      mapping.map();
      CHECK(place.touchable());
    }
  }
}

TEST(what_a_failed_map_left_goes_with_the_mapping) {
  Place place;
  {
    Mapping mapping(place.faulty, place.reservation, place.held);
    place.plan->arm(3, Status::unknown, true);
    CHECK_THROWS(DriverError, mapping.map());
    place.plan->disarm();
  }
  Mapping another(place.faulty, place.reservation, place.held);
  another.map();
  CHECK(place.touchable());
}

TEST(a_failed_unmap_leaves_everything_mapped) {
  Place place;
  Mapping mapping(place.faulty, place.reservation, place.held);
  mapping.map();
  place.bench.write(place.base(), pattern(2, 3 * page_bytes));
  place.plan->arm(1, Status::unknown, false);
  CHECK_THROWS(DriverError, mapping.unmap());
  CHECK(mapping.mapped());
  CHECK(place.bench.read(place.base(), 3 * page_bytes) == pattern(2, 3 * page_bytes));
  mapping.unmap();
  CHECK(place.untouchable());
}

TEST(a_mapping_holds_its_addresses_and_its_pages) {
  Place place;
  auto mapping = std::make_unique<Mapping>(place.faulty, place.reservation, place.held);
  mapping->map();
  const DevicePtr base = place.base();
  place.bench.write(base, pattern(3, page_bytes));
  const std::weak_ptr<const Page> page = place.held[0];
  place.reservation.reset();
  place.held.clear();
  CHECK(!page.expired());
  CHECK(place.bench.read(base, page_bytes) == pattern(3, page_bytes));
  mapping.reset();
  CHECK(page.expired());
  CHECK_EQ(place.bench->address_free(base, 3 * page_bytes), Status::invalid_value);  // free already
}

TEST(addresses_with_something_behind_them_are_never_reused) {
  Place place(1);
  const DevicePtr base = place.base();
  {
    Mapping mapping(place.faulty, std::move(place.reservation), place.held);
    mapping.map();
    place.plan->arm(1, Status::unknown, true);
  }  // neither could the page be unmapped, nor so the addresses freed
  place.plan->disarm();
  for (int i = 0; i < 100; ++i) {
    DevicePtr address = 0;
    CHECK_OK(place.bench->address_reserve(&address, page_bytes));
    CHECK(address != base);
  }
}

TEST(pages_that_stay_mapped_are_in_doubt) {
  for (const bool fails : {true, false}) {
    for (const std::size_t mapped : {2, 3}) {
      Place place;
      {
        Mapping mapping(place.faulty, place.reservation, place.held);
        if (mapped == 3) {
          mapping.map();
        } else {  // the third map fails, and so does the way back
          place.plan->arm(3, Status::unknown, true);
          CHECK_THROWS(DriverError, mapping.map());
          place.plan->disarm();
        }
        if (fails) place.plan->arm_call(DriverCall::unmap, 1, 1, Status::unknown);
      }
      for (std::size_t i = 0; i < 3; ++i) {
        CHECK_EQ(place.held[i]->in_doubt(), fails && i < mapped);
      }
    }
  }
}

TEST(a_mapping_grows_and_shrinks) {
  Place place(4);
  Mapping mapping(place.faulty, place.reservation, {place.held[0]});
  CHECK_THROWS(UsageError, mapping.extend({place.held[1]}));  // not mapped
  CHECK_THROWS(UsageError, mapping.shrink(1));
  mapping.map();
  place.bench.write(place.base(), pattern(1, page_bytes));
  mapping.extend({});
  mapping.extend({place.held[1], place.held[2]});
  place.bench.write(place.base() + page_bytes, pattern(2, 2 * page_bytes));
  CHECK_THROWS(UsageError, mapping.extend({place.held[3], place.held[3]}));  // does not fit
  CHECK_THROWS(UsageError, mapping.extend({Page::create(place.faulty, 2 * page_bytes)}));
  CHECK_THROWS(UsageError, mapping.shrink(0));
  CHECK_THROWS(UsageError, mapping.shrink(4));
  CHECK(mapping.shrink(3).empty());
  CHECK((mapping.shrink(2) == std::vector<PagePtr>{place.held[2]}));
  CHECK(mapping.mapped());
  CHECK_EQ(mapping.pages().size(), 2);
  CHECK_EQ(place.bench->unmap(place.base() + 2 * page_bytes, page_bytes), Status::invalid_value);
  CHECK(place.bench.read(place.base(), page_bytes) == pattern(1, page_bytes));
  mapping.unmap();
  mapping.map();
  mapping.extend({place.held[2]});
  const Bytes behind = place.bench.read(place.base() + page_bytes, 2 * page_bytes);
  CHECK(behind == pattern(2, 2 * page_bytes));
}

TEST(growth_that_fails_is_undone_or_stays_until_it_can_be) {
  for (const bool persistent : {false, true}) {
    for (std::uint64_t nth = 1; nth <= 3; ++nth) {  // two maps and a set_access
      Place place;
      Mapping mapping(place.faulty, place.reservation, {place.held[0]});
      mapping.map();
      place.plan->arm(nth, Status::out_of_memory, persistent);
      CHECK_THROWS(DriverError, mapping.extend({place.held[1], place.held[2]}));
      place.plan->disarm();
      CHECK_EQ(mapping.pages().size(), persistent ? nth : 1);
      CHECK(place.touchable());
      CHECK_EQ(mapping.shrink(1).size(), persistent ? nth - 1 : 0);
      mapping.extend({place.held[1], place.held[2]});
      place.bench.write(place.base(), pattern(3, 3 * page_bytes));
    }
  }
}

TEST(a_shrink_that_fails_changes_nothing) {
  Place place;
  Mapping mapping(place.faulty, place.reservation, place.held);
  mapping.map();
  place.plan->arm(1, Status::unknown, false);
  CHECK_THROWS(DriverError, mapping.shrink(1));
  CHECK_EQ(mapping.pages().size(), 3);
  place.bench.write(place.base(), pattern(3, 3 * page_bytes));
}

TEST(everything_goes_back_once) {
  const auto ledger = std::make_shared<Ledger>(open_test_driver());
  const Holdings nothing = ledger->held();
  for (const bool fails : {false, true}) {
    const auto plan = std::make_shared<FaultPlan>();
    const DriverPtr driver = with_faults(ledger, plan);
    const auto reservation = std::make_shared<const Reservation>(driver, 3 * page_bytes);
    PagePool pool(driver, 3 * page_bytes, page_bytes);
    std::vector<PagePtr> pages;
    for (const PageId id : pool.acquire(1, 3)) pages.push_back(pool.page(id));
    Mapping mapping(driver, reservation, pages);
    if (fails) {
      plan->arm(3, Status::unknown, false);
      CHECK_THROWS(DriverError, mapping.map());
    } else {
      mapping.map();
      mapping.unmap();
    }
    mapping.map();
    CHECK_EQ(ledger->held().mappings, 3 * page_bytes);
    CHECK_EQ(ledger->held().pages, 3);
  }
  CHECK(ledger->held() == nothing);
  CHECK_EQ(ledger->refused(), 0);  // nor was anything given back that was gone
}

TEST(what_gives_back_fails_only_where_that_is_asked_for) {
  FaultPlan plan;
  for (const bool releases : {false, true}) {
    const Status expected = releases ? Status::unknown : Status::success;
    plan.arm(1, Status::unknown, true, releases);
    for (const DriverCall call :
         {DriverCall::page_release, DriverCall::address_free, DriverCall::host_unregister,
          DriverCall::stream_destroy, DriverCall::event_destroy}) {
      CHECK_EQ(plan.next(call), expected);
    }
    CHECK_EQ(plan.next(DriverCall::unmap), Status::unknown);
    CHECK_EQ(plan.injected(), releases ? 6 : 1);
  }
}

TEST(addresses_that_could_not_be_unmapped_are_not_given_back) {
  Place place(1);
  const auto hooked = std::make_shared<Hooked>(place.bench.driver());
  int freed = 0;
  hooked->before = [&](DriverCall call) { freed += call == DriverCall::address_free; };
  const DriverPtr driver = with_faults(hooked, place.plan);
  for (const bool refused : {true, false}) {
    auto reservation = std::make_shared<const Reservation>(driver, page_bytes);
    {
      Mapping mapping(driver, reservation, place.held);
      mapping.map();
      place.plan->arm_call(DriverCall::unmap, 1, refused ? 1 : 0, Status::unknown);
    }
    reservation.reset();
    CHECK_EQ(freed, refused ? 0 : 1);
  }
}

// The pages of one budget: all or none, one owner each, and usable after every refusal.
#include <chrono>
#include <future>
#include <set>
#include <thread>

#include "bench.h"
#include "driver/fault.h"
#include "hooked.h"
#include "memory/memory.h"

using namespace gpupool;

namespace {

DriverPtr device() {
  static const DriverPtr driver = open_test_driver();
  return driver;
}

PagePool pool_of(std::size_t pages, DriverPtr driver = device()) {
  return PagePool(std::move(driver), pages * page_bytes, page_bytes);
}

}  // namespace

TEST(page_size_and_budget_are_checked_at_the_door) {
  CHECK_THROWS(UsageError, PagePool(device(), 8 * page_bytes, page_bytes / 2));
  CHECK_THROWS(UsageError, PagePool(device(), 8 * page_bytes, 3 * page_bytes));
  CHECK_THROWS(UsageError, PagePool(device(), 8 * page_bytes, 0));
  CHECK_THROWS(UsageError, PagePool(device(), page_bytes - 1, page_bytes));
  // More pages than there are ids, or than anything could keep the books of.
  CHECK_THROWS(UsageError, PagePool(device(), page_bytes << 33, page_bytes));
  CHECK_THROWS(UsageError, PagePool(device(), (page_bytes << 32) + page_bytes, page_bytes));
  CHECK_THROWS(UsageError, PagePool(device(), std::size_t{1} << 63, page_bytes));
  CHECK_THROWS(UsageError, PagePool(device(), ~std::size_t{0}, page_bytes));
  const PagePool pool(device(), 3 * page_bytes - 1, page_bytes);
  CHECK_EQ(pool.total_pages(), 2);  // whole pages only
}

TEST(pages_are_created_on_first_use_and_kept) {
  PagePool pool = pool_of(4);
  CHECK_EQ(pool.created_pages(), 0);
  const auto first = pool.acquire(1, 3);
  CHECK_EQ(pool.created_pages(), 3);
  CHECK_EQ(pool.free_pages(), 1);
  const PageHandle handle = pool.page(first[0])->handle();
  pool.give_back(1, first);
  const auto second = pool.acquire(2, 3);
  CHECK_EQ(pool.created_pages(), 3);
  CHECK(std::set(first.begin(), first.end()) == std::set(second.begin(), second.end()));
  CHECK_EQ(pool.page(first[0])->handle(), handle);
}

TEST(all_or_none) {
  PagePool pool = pool_of(4);
  const auto held = pool.acquire(1, 3);
  CHECK_THROWS(UsageError, pool.acquire(2, 2));
  CHECK_EQ(pool.free_pages(), 1);
  CHECK(pool.owned(2).empty());
  CHECK_THROWS(UsageError, pool.acquire(2, ~std::size_t{0}));
  CHECK_EQ(pool.acquire(2, 1).size(), 1);
  CHECK(pool.acquire(3, 0).empty());
}

TEST(no_page_has_two_owners) {
  PagePool pool = pool_of(6);
  const auto a = pool.acquire(1, 3), b = pool.acquire(2, 3);
  std::set<PageId> both(a.begin(), a.end());
  both.insert(b.begin(), b.end());
  CHECK_EQ(both.size(), 6);
  std::set<PageHandle> handles;
  for (const PageId id : both) handles.insert(pool.page(id)->handle());
  CHECK_EQ(handles.size(), 6);
}

TEST(a_page_comes_back_once_and_from_its_owner) {
  PagePool pool = pool_of(4);
  const auto mine = pool.acquire(1, 2), theirs = pool.acquire(2, 1);
  const auto refused = [&](std::vector<PageId> pages) {
    CHECK_THROWS(UsageError, pool.give_back(1, pages));
    CHECK_EQ(pool.owned(1).size(), 2);
    CHECK_EQ(pool.owned(2).size(), 1);
    CHECK_EQ(pool.free_pages(), 1);
  };
  refused({mine[0], mine[0]});    // named twice
  refused({mine[0], theirs[0]});  // one is another's
  refused({mine[0], 3});          // never created
  refused({mine[0], 4711});       // no such page
  pool.give_back(1, mine);
  CHECK_THROWS(UsageError, pool.give_back(1, mine));
  CHECK_EQ(pool.free_pages(), 3);
}

TEST(give_back_all_takes_everything_of_one_owner) {
  PagePool pool = pool_of(4);
  static_cast<void>(pool.acquire(1, 1));
  static_cast<void>(pool.acquire(1, 2));
  const auto other = pool.acquire(2, 1);
  CHECK_EQ(pool.give_back_all(1).size(), 3);
  CHECK(pool.give_back_all(1).empty());
  CHECK(pool.owned(2) == other);
}

TEST(give_back_all_takes_what_is_held_at_one_moment) {
  PagePool pool = pool_of(4);
  std::atomic<bool> over{false};
  std::thread other([&] {
    while (!over) {
      // Whoever comes first gives the page back; the other finds that it is not held.
      const auto held = pool.acquire(1, 1);
      check::throws<UsageError>([&] { pool.give_back(1, held); });
    }
  });
  int refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    refused += check::throws<UsageError>([&] { pool.give_back_all(1); });
  }
  over = true;
  other.join();
  CHECK_EQ(refused, 0);
}

TEST(a_page_in_doubt_is_granted_to_nobody) {
  PagePool pool = pool_of(3);
  const auto held = pool.acquire(1, 2);
  pool.page(held[0])->put_in_doubt();
  pool.give_back_all(1);
  CHECK_EQ(pool.statistics().withheld, 1);
  CHECK_EQ(pool.free_pages(), 2);
  CHECK_THROWS(UsageError, pool.acquire(2, 3));
  CHECK_EQ(pool.acquire(2, 2).size(), 2);
}

TEST(an_unknown_page_is_refused) {
  PagePool pool = pool_of(4);
  CHECK_THROWS(UsageError, pool.page(0));
}

TEST(out_of_memory_leaves_the_pool_usable) {
  for (std::uint64_t nth = 1; nth <= 3; ++nth) {
    const auto plan = std::make_shared<FaultPlan>();
    PagePool pool = pool_of(4, with_faults(open_test_driver(), plan));
    const auto held = pool.acquire(1, 1);
    plan->arm(nth, Status::out_of_memory, true);
    try {
      static_cast<void>(pool.acquire(2, 3));
      check::fail(__FILE__, __LINE__, "the fault was not met");
    } catch (const DriverError& error) {
      CHECK_EQ(error.status(), Status::out_of_memory);
      CHECK_EQ(std::string(error.call()), "page_create");
    }
    CHECK_EQ(pool.free_pages(), 3);
    CHECK_EQ(pool.created_pages(), nth);  // what was made by then stays, free
    CHECK(pool.owned(2).empty());
    CHECK(pool.owned(1) == held);
    plan->disarm();
    CHECK_EQ(pool.acquire(2, 3).size(), 3);
    CHECK_EQ(pool.free_pages(), 0);
  }
}

TEST(the_pool_answers_while_a_page_is_created) {
  for (const bool ahead : {true, false}) {
    const auto driver = std::make_shared<Hooked>(open_test_driver());
    PagePool pool = pool_of(4, driver);
    std::promise<void> creating;
    std::promise<PoolStatistics> answer;
    std::future<PoolStatistics> answered = answer.get_future();
    bool in_time = false;
    int created = 0;
    driver->before = [&](DriverCall call) {
      if (call != DriverCall::page_create || ++created != 2) return;
      creating.set_value();
      in_time = answered.wait_for(std::chrono::minutes(1)) == std::future_status::ready;
    };
    std::thread other([&] {
      creating.get_future().wait();
      answer.set_value(pool.statistics());
    });
    if (ahead) {
      pool.create_ahead(3);
    } else {
      static_cast<void>(pool.acquire(1, 3));
    }
    other.join();
    CHECK(in_time);
    const PoolStatistics now = answered.get();
    CHECK_EQ(now.created, 1);
    CHECK_EQ(now.dirty, 1);
    CHECK_EQ(pool.created_pages(), 3);
    CHECK_EQ(pool.free_pages(), ahead ? 4 : 1);
  }
}

TEST(threads_create_each_page_of_a_budget_once) {
  for (int round = 0; round < 40; ++round) {
    const auto driver = std::make_shared<Hooked>(device());
    PagePool pool = pool_of(4, driver);
    std::atomic<int> created{0}, ready{0};
    driver->before = [&](DriverCall call) {
      if (call != DriverCall::page_create) return;
      ++created;
      for (int i = 0; i < 20; ++i) std::this_thread::yield();
    };
    std::vector<std::thread> threads;
    for (OwnerId owner = 1; owner <= 4; ++owner) {
      threads.emplace_back([&, owner] {
        ++ready;
        while (ready < 4) std::this_thread::yield();
        if (owner <= 2) {
          static_cast<void>(pool.acquire(owner, 2));
        } else {
          pool.create_ahead(4);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK_EQ(created.load(), 4);
    CHECK_EQ(pool.created_pages(), 4);
    CHECK_EQ(pool.owned(1).size(), 2);
    CHECK_EQ(pool.owned(2).size(), 2);
  }
}

TEST(who_waits_for_a_page_that_cannot_be_created_makes_one) {
  for (int round = 0; round < 60; ++round) {
    const auto plan = std::make_shared<FaultPlan>();
    const auto driver = std::make_shared<Hooked>(with_faults(device(), plan));
    PagePool pool = pool_of(1, driver);
    std::atomic<int> created{0}, ready{0}, refused{0};
    driver->before = [&](DriverCall call) {
      if (call != DriverCall::page_create) return;
      ++created;
      for (int i = 0; i < 20; ++i) std::this_thread::yield();
    };
    plan->arm(1, Status::out_of_memory, false);
    std::vector<std::thread> threads;
    for (OwnerId owner = 1; owner <= 2; ++owner) {
      threads.emplace_back([&, owner] {
        ++ready;
        while (ready < 2) std::this_thread::yield();
        refused += check::throws<DriverError>([&] {
          if (owner == 1) return pool.create_ahead(1);
          static_cast<void>(pool.acquire(owner, 1));
        });
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK_EQ(created.load(), 2);
    CHECK_EQ(refused.load(), 1);
    CHECK_EQ(pool.created_pages(), 1);
    CHECK_EQ(pool.free_pages() + pool.owned(2).size(), 1);
  }
}

TEST(a_page_outlives_its_pool) {
  PagePtr page;
  {
    PagePool pool = pool_of(1, open_test_driver());
    page = pool.page(pool.acquire(1, 1)[0]);
  }
  CHECK_EQ(page->bytes(), page_bytes);
  CHECK(page->export_fd() >= 0);
}

TEST(threads_share_a_pool) {
  PagePool pool = pool_of(8);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (OwnerId owner = 1; owner <= 4; ++owner) {
    threads.emplace_back([&, owner] {
      for (int i = 0; i < 200; ++i) {
        const auto pages = pool.acquire(owner, 2);
        wrong += pool.owned(owner).size() != 2;
        pool.give_back(owner, pages);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(wrong.load(), 0);
  CHECK_EQ(pool.free_pages(), 8);
}

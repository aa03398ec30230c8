// Pages of a pool that several owners have.
#include "bench.h"
#include "memory/memory.h"

using namespace gpupool;

namespace {

PagePool pool_of(std::size_t pages) {
  return PagePool(open_test_driver(), pages * page_bytes, page_bytes);
}

}  // namespace

TEST(a_shared_page_is_free_once_all_have_given_it_back) {
  PagePool pool = pool_of(4);
  const auto held = pool.acquire(1, 2);
  pool.share(2, held);
  pool.share(3, {held.data(), 1});
  CHECK_EQ(pool.free_pages(), 2);
  CHECK(pool.owned(2) == pool.owned(1));
  CHECK((pool.owned(3) == std::vector<PageId>{held[0]}));
  CHECK_EQ(pool.statistics().owned, 2);
  pool.give_back(1, held);  // who had them first
  CHECK(pool.owned(1).empty());
  CHECK_THROWS(UsageError, pool.give_back(1, held));
  CHECK_EQ(pool.free_pages(), 2);
  CHECK_EQ(pool.owned(2).size(), 2);
  CHECK_EQ(pool.give_back_all(2).size(), 2);
  CHECK_EQ(pool.free_pages(), 3);
  CHECK((pool.owned(3) == std::vector<PageId>{held[0]}));
  pool.share(1, {held.data(), 1});
  pool.give_back(1, {held.data(), 1});  // who had it last
  pool.give_back_all(3);
  CHECK_EQ(pool.free_pages(), 4);
  CHECK_EQ(pool.acquire(4, 4).size(), 4);
}

TEST(only_what_others_hold_is_shared) {
  PagePool pool = pool_of(4);
  const auto mine = pool.acquire(1, 1), others = pool.acquire(2, 1), free = pool.acquire(3, 1);
  pool.give_back_all(3);
  const auto refuses = [&](std::vector<PageId> pages) {
    CHECK_THROWS(UsageError, pool.share(1, pages));
    CHECK(pool.owned(1) == mine);
    CHECK(pool.owned(2) == others);
  };
  refuses({others[0], mine[0]});
  refuses({others[0], free[0]});
  refuses({others[0], others[0]});
  refuses({others[0], 1000});
  pool.begin_scrub_owned(2, others);
  refuses(others);
  pool.end_scrub_owned(others, true);
  pool.share(1, others);
  CHECK_THROWS(UsageError, pool.begin_scrub_owned(2, others));
  CHECK_THROWS(UsageError, pool.share(1, others));
  pool.page(others[0])->put_in_doubt();
  pool.give_back(2, others);
  pool.give_back(1, others);
  CHECK_EQ(pool.statistics().withheld, 1);
}

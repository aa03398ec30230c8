// Who has an observer, and the time that it counts.
#include "ledger.h"
#include "observed_bench.h"

using namespace gpupool;

TEST(a_driver_that_is_not_observed_has_no_observer) {
  const DriverPtr bare = open_bare_test_driver();
  CHECK(observer_of(*bare) == nullptr);
  Observed observed(bare);
  CHECK(observer_of(*observed.driver) == observed.observer);
  CHECK_THROWS(UsageError, with_observer(bare, observed.observer));
  CHECK_EQ(observed.driver->status_name(Status::not_found), bare->status_name(Status::not_found));
  CHECK_EQ(observed.driver->ordinal(), 0);
}

TEST(time_inside_is_counted) {
  Observed observed;
  std::size_t bytes = 0;
  const std::int64_t begin_ns = observed.driver->now_ns();
  for (int i = 0; i < 1000; ++i) CHECK_OK(observed.driver->page_granularity(&bytes));
  const std::int64_t passed_ns = observed.driver->now_ns() - begin_ns;
  const DriverStatistics now = observed.observer->statistics();
  const auto& count = now.calls[static_cast<std::size_t>(DriverCall::page_granularity)];
  CHECK_EQ(count.calls, 1000);
  const std::uint64_t inside_ns = count.ns;
  CHECK(inside_ns > 0 && inside_ns <= static_cast<std::uint64_t>(passed_ns));
}

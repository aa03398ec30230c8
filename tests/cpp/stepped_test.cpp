// The scheduler of stepped streams: all that is legal happens, nothing else, and again by seed.
#include <set>
#include <thread>

#include "bench.h"

using namespace gpupool;

namespace {

constexpr std::size_t granule = 4096;
constexpr std::size_t bytes = 4 * granule;

// Two streams over a few small pages.
struct Steps {
  explicit Steps(std::uint64_t seed)
      : driver(host_device(open_stepped(seed, granule))), staging(driver, -1, bytes) {
    CHECK_OK(driver->address_reserve(&base, bytes));
    for (std::size_t at = 0; at < bytes; at += granule) {
      PageHandle page = 0;
      CHECK_OK(driver->page_create(&page, granule));
      CHECK_OK(driver->map(base + at, granule, page));
    }
    CHECK_OK(driver->set_access(base, bytes));
    CHECK_OK(driver->stream_create(&one));
    CHECK_OK(driver->stream_create(&two));
    CHECK_OK(driver->event_create(&event));
  }
  const std::uint8_t* device() const { return reinterpret_cast<const std::uint8_t*>(base); }
  std::shared_ptr<host::HostDriver> driver;
  HostMemory staging;
  DevicePtr base = 0;
  StreamHandle one = nullptr, two = nullptr;
  EventHandle event = nullptr;
};

// How many of `seeds` schedules answer each way.
template <typename Run>
std::set<int> outcomes(int seeds, Run run) {
  std::set<int> seen;
  for (int seed = 0; seed < seeds; ++seed) {
    Steps steps(static_cast<std::uint64_t>(seed));
    seen.insert(run(steps));
  }
  return seen;
}

}  // namespace

TEST(work_runs_early_in_some_schedules_and_late_in_others) {
  const auto seen = outcomes(200, [](Steps& steps) {
    CHECK_OK(steps.driver->fill(steps.base, 1, granule, steps.one));
    return static_cast<int>(steps.driver->pending());
  });
  CHECK(seen == std::set({0, 1}));
}

TEST(work_nobody_waits_for_may_never_run) {
  const auto seen = outcomes(200, [](Steps& steps) {
    CHECK_OK(steps.driver->fill(steps.base, 1, granule, steps.one));
    for (int i = 0; i < 10; ++i) CHECK_OK(steps.driver->stream_synchronize(steps.two));
    return steps.device()[0] == 1 && steps.device()[granule - 1] == 1 ? 1 : 0;
  });
  CHECK(seen == std::set({0, 1}));
}

TEST(streams_overtake_one_another_both_ways) {
  const auto seen = outcomes(200, [](Steps& steps) {
    CHECK_OK(steps.driver->fill(steps.base, 1, 1, steps.one));
    CHECK_OK(steps.driver->fill(steps.base, 2, 1, steps.two));
    CHECK_OK(steps.driver->stream_synchronize(steps.two));
    CHECK_OK(steps.driver->stream_synchronize(steps.one));
    return static_cast<int>(steps.device()[0]);
  });
  CHECK(seen == std::set({1, 2}));
}

TEST(copies_of_two_streams_are_torn_unless_ordered) {
  const auto run = [](bool ordered) {
    return outcomes(400, [ordered](Steps& steps) {
      CHECK_OK(steps.driver->fill(steps.base, 1, bytes, steps.one));
      CHECK_OK(steps.driver->event_record(steps.event, steps.one));
      CHECK_OK(steps.driver->event_synchronize(steps.event));
      CHECK_OK(steps.driver->fill(steps.base, 2, bytes, steps.one));
      CHECK_OK(steps.driver->event_record(steps.event, steps.one));
      if (ordered) CHECK_OK(steps.driver->stream_wait_event(steps.two, steps.event));
      CHECK_OK(steps.driver->copy_to_host(steps.staging.data(), steps.base, bytes, steps.two));
      CHECK_OK(steps.driver->stream_synchronize(steps.two));
      const auto* seen = reinterpret_cast<const std::uint8_t*>(steps.staging.data());
      const std::set<int> values(seen, seen + bytes);
      return values.size() == 2 ? 3 : *values.begin();
    });
  };
  CHECK(run(false) == std::set({1, 2, 3}));  // old, new and torn
  CHECK(run(true) == std::set({2}));
}

TEST(an_event_completes_while_it_is_polled) {
  const auto seen = outcomes(500, [](Steps& steps) {
    CHECK_OK(steps.driver->fill(steps.base, 1, granule, steps.one));
    CHECK_OK(steps.driver->event_record(steps.event, steps.one));
    int polls = 0;
    while (steps.driver->event_query(steps.event) == Status::not_ready) CHECK(++polls < 1000);
    CHECK_EQ(steps.device()[granule - 1], 1);
    return polls == 0 ? 0 : 1;
  });
  CHECK(seen == std::set({0, 1}));
}

TEST(a_destroyed_stream_is_waited_for_by_nobody) {
  const auto seen = outcomes(200, [](Steps& steps) {
    CHECK_OK(steps.driver->fill(steps.base, 1, 1, steps.one));
    CHECK_OK(steps.driver->stream_destroy(steps.one));
    CHECK_EQ(steps.driver->stream_synchronize(steps.one), Status::invalid_handle);
    return static_cast<int>(steps.driver->pending());
  });
  CHECK(seen == std::set({0, 1}));
}

TEST(the_same_seed_gives_the_same_schedule) {
  const auto trace = [](std::uint64_t seed) {
    Steps steps(seed);
    std::vector<std::int64_t> seen;
    for (int i = 0; i < 100; ++i) {
      const auto value = static_cast<std::uint8_t>(i);
      CHECK_OK(steps.driver->fill(steps.base, value, bytes, i % 3 == 0 ? steps.one : steps.two));
      seen.push_back(steps.device()[0] + 256 * steps.device()[bytes - 1]);
      seen.push_back(static_cast<std::int64_t>(steps.driver->pending()));
      seen.push_back(steps.driver->now_ns());
    }
    return seen;
  };
  std::set<std::vector<std::int64_t>> distinct;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    CHECK(trace(seed) == trace(seed));
    distinct.insert(trace(seed));
  }
  CHECK_EQ(distinct.size(), 50);
}

TEST(the_clock_stands_still_while_nothing_is_called) {
  Steps steps(3);
  const std::int64_t before = steps.driver->now_ns();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(steps.driver->now_ns() - before < 1000);
}

TEST(a_wait_that_nothing_can_satisfy_is_an_error_that_names_it) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Steps steps(seed);
    std::unique_ptr<host::Hold> hold;
    CHECK_EQ(steps.driver->deadlock(), std::string());
    CHECK_OK(steps.driver->hold(steps.one, &hold));
    CHECK_OK(steps.driver->event_record(steps.event, steps.one));
    CHECK_EQ(steps.driver->stream_synchronize(steps.one), Status::launch_timeout);
    CHECK_EQ(steps.driver->deadlock(),
             std::string("stream_synchronize of stream 1 waits for stream 1, which is held and "
                         "nothing else runs"));
    CHECK_EQ(steps.driver->event_synchronize(steps.event), Status::launch_timeout);
    CHECK_EQ(steps.driver->deadlock(),
             std::string("event_synchronize of event 3 recorded on stream 1 waits for stream 1, "
                         "which is held and nothing else runs"));
    CHECK_OK(steps.driver->stream_wait_event(steps.two, steps.event));
    try {
      GPUPOOL_CALL(steps.driver, stream_synchronize, steps.two);
      check::fail(__FILE__, __LINE__, "nothing was thrown");
    } catch (const DriverError& error) {
      CHECK_EQ(std::string(error.what()),
               std::string("stream_synchronize failed: CUDA_ERROR_LAUNCH_TIMEOUT "
                           "(stream_synchronize of stream 2 waits for stream 2, which waits for "
                           "event 3, which waits for stream 1, which is held and nothing else "
                           "runs)"));
    }
    hold.reset();
    CHECK_OK(steps.driver->stream_synchronize(steps.two));  // nothing was lost by the refusal
    CHECK_OK(steps.driver->event_query(steps.event));
  }
}

TEST(waiting_for_all_streams_names_the_one_that_is_held) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Steps steps(seed);
    std::unique_ptr<host::Hold> hold;
    CHECK_OK(steps.driver->hold(steps.two, &hold));
    CHECK_EQ(steps.driver->context_synchronize(), Status::launch_timeout);
    CHECK_EQ(steps.driver->deadlock(),
             std::string("context_synchronize for stream 2 waits for stream 2, which is held and "
                         "nothing else runs"));
    hold.reset();
    CHECK_OK(steps.driver->context_synchronize());
  }
}

TEST(waiting_for_all_streams_includes_those_destroyed) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Steps steps(seed);
    StreamHandle gone = nullptr;
    CHECK_OK(steps.driver->stream_create(&gone));
    for (std::uint8_t i = 1; i <= 8; ++i) CHECK_OK(steps.driver->fill(steps.base, i, 64, gone));
    CHECK_OK(steps.driver->stream_destroy(gone));
    CHECK_OK(steps.driver->context_synchronize());
    CHECK_EQ(steps.driver->pending(), 0);
    CHECK_EQ(steps.device()[63], 8);
  }
}

TEST(what_a_hold_does_not_concern_goes_on) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Steps steps(seed);
    std::unique_ptr<host::Hold> hold;
    CHECK_OK(steps.driver->fill(steps.base, 5, 1, steps.one));
    CHECK_OK(steps.driver->event_record(steps.event, steps.one));
    CHECK_OK(steps.driver->hold(steps.one, &hold));
    CHECK_OK(steps.driver->event_synchronize(steps.event));
    CHECK_EQ(steps.device()[0], 5);
  }
}

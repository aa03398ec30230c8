// A trace as a record: what it holds, how it is written, and who may switch it.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "observed_bench.h"

using namespace gpupool;

namespace {

using Kind = TraceEvent::Kind;

}  // namespace

TEST(a_full_trace_counts_what_it_drops) {
  Observed observed;
  const auto trace = observed.start(10);
  std::size_t bytes = 0;
  for (int i = 0; i < 25; ++i) CHECK_OK(observed.driver->page_granularity(&bytes));
  observed.observer->span("late", 1, 2, {});
  observed.stop(*trace);
  CHECK_EQ(trace->events().size(), 10);
  CHECK_EQ(trace->dropped(), 16);
  const std::string json = json_of(*trace);
  CHECK(json.find("\"events\":10,\"dropped\":16") != std::string::npos);
  CHECK(json.find("\"16 events were dropped\"") != std::string::npos);
}

TEST(a_full_trace_takes_no_tracks) {
  Observed observed;
  Bench bench(observed.driver);
  const DevicePtr base = bench.mapped(1);
  const auto trace = observed.start(1);
  for (int i = 0; i < 50; ++i) {
    StreamHandle stream = nullptr;
    CHECK_OK(observed.driver->stream_create(&stream));
    CHECK_OK(observed.driver->fill(base, 0, 1, stream));
    CHECK_OK(observed.driver->stream_synchronize(stream));
    CHECK_OK(observed.driver->stream_destroy(stream));
  }
  observed.stop(*trace);
  CHECK_EQ(trace->events().size(), 1);
  CHECK_EQ(trace->dropped(), 5 * 50 - 1);  // four calls and one piece of work, each time
  CHECK(json_of(*trace).find(":0 stream") == std::string::npos);
  CHECK_EQ(trace->add_stream_track("host:0"), 0);
  Trace closed;
  closed.close();
  CHECK_EQ(closed.add_stream_track("host:0"), 0);
}

TEST(names_are_escaped_and_times_exact) {
  Observed observed;
  const auto trace = observed.start();
  observed.observer->span("a \"b\"\\\n\x01", 1'234'567, 1'234'568'001,
                          {{"bytes", std::int64_t{-5}}, {"ratio", 0.5}, {"who", "\t"}});
  trace->ran({5, 6, 5, 0, 0, 0, 0, DriverCall::fill, Kind::ran});
  observed.stop(*trace);
  const std::string json = json_of(*trace);
  CHECK(json.find(
            R"("name":"a \"b\"\\\u000a\u0001","args":{"bytes":-5,"ratio":0.5,"who":"\u0009"})") !=
        std::string::npos);
  CHECK(json.find(R"("ts":1234.567,"dur":1233333.434)") != std::string::npos);
}

TEST(nothing_is_recorded_outside_a_trace) {
  Observed observed;
  observed.observer->span("before", 1, 2, {});
  const auto trace = observed.start();
  CHECK_THROWS(UsageError, observed.start());
  std::size_t bytes = 0;
  CHECK_OK(observed.driver->page_granularity(&bytes));
  CHECK(observed.observer->tracing());
  observed.observer->stop();
  CHECK(!observed.observer->tracing());
  observed.observer->stop();
  CHECK_OK(observed.driver->page_granularity(&bytes));
  trace->close();
  trace->call({});
  trace->drop();
  CHECK_EQ(trace->events().size(), 1);
  CHECK_EQ(trace->dropped(), 0);
}

TEST(tracing_may_be_switched_while_others_call) {
  Observed traced;
  Bench bench(traced.driver);
  const DevicePtr base = bench.mapped(1);
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  std::atomic<int> refused{0};
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      while (!done) {
        refused += bench->fill(base, 1, 4096, bench.stream()) != Status::success;
        refused += bench->stream_synchronize(bench.stream()) != Status::success;
        traced.observer->span("fill", 1, 2, {});
      }
    });
  }
  std::size_t shown = 0;
  std::vector<std::shared_ptr<Trace>> traces;
  for (int round = 0; round < 100 || shown == 0; ++round) {
    const auto trace = traced.start();
    const std::uint64_t before = traced.observer->statistics().filled_bytes;
    while (traced.observer->statistics().filled_bytes < before + 4 * 4096) {
      std::this_thread::yield();
    }
    traced.stop(*trace);
    traces.push_back(trace);
    for (const TraceEvent& event : trace->events()) shown += of_stream(event);
  }
  done = true;
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(refused.load(), 0);
  for (const auto& trace : traces) check_well_formed(*trace);
}

// There when coverage is counted.
extern "C" __attribute__((weak)) void __gcov_dump();

TEST(a_forked_child_records_nothing_and_ends) {
  Observed observed;
  const auto trace = observed.start();
  std::size_t bytes = 0;
  CHECK_OK(observed.driver->page_granularity(&bytes));
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // a lock that nobody will give back is an end too
    static_cast<void>(observed.driver->page_granularity(&bytes));
    bool right = true;
    observed.observer->span("child", 1, 2, {});
    try {
      observed.start();
      right = false;
    } catch (const UsageError&) {
    }
    observed.observer->stop();
    right = right && trace->events().size() == 1;
    observed.driver.reset();
    if (__gcov_dump != nullptr) __gcov_dump();  // _exit() would not count what ran here
    _exit(right ? 0 : 1);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  CHECK_OK(observed.driver->page_granularity(&bytes));
  observed.stop(*trace);
  CHECK_EQ(trace->events().size(), 2);
}

TEST(statistics_differ_when_any_figure_does) {
  const DriverStatistics none;
  CHECK(none == DriverStatistics());
  const auto differs = [&](auto change) {
    DriverStatistics other;
    change(other);
    CHECK(!(none == other));
  };
  differs([](auto& all) { all.calls.back().calls = 1; });
  differs([](auto& all) { all.calls.back().failures = 1; });
  differs([](auto& all) { all.calls.back().ns = 1; });
#define DIFFERS(name) differs([](auto& all) { all.name = 1; });
  GPUPOOL_OBSERVED_AMOUNTS(DIFFERS)
#undef DIFFERS
}

// Traces while other threads call, and in a forked child.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "traced_bench.h"

using namespace gpupool;

TEST(tracing_may_be_switched_while_others_call) {
  Traced traced;
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

TEST(a_forked_child_records_nothing_and_ends) {
  Observed observed;
  const auto trace = observed.start();
  std::size_t bytes = 0;
  CHECK_OK(observed.driver->page_granularity(&bytes));
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // a lock that nobody will give back is an end too
    bool right = observed.driver->page_granularity(&bytes) == Status::success;
    observed.observer->span("child", 1, 2, {});
    try {
      observed.start();
      right = false;
    } catch (const UsageError&) {
    }
    observed.observer->stop();
    right = right && trace->events().size() == 1;
    observed.driver.reset();
    _exit(right ? 0 : 1);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  CHECK_OK(observed.driver->page_granularity(&bytes));
  observed.stop(*trace);
  CHECK_EQ(trace->events().size(), 2);
}

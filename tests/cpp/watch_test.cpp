// When the work of streams ran, as a trace shows it: seen to end, waited for, or left on its way.
#include <memory>
#include <set>

#include "driver/fault.h"
#include "observed_bench.h"

using namespace gpupool;

namespace {

using Kind = TraceEvent::Kind;

// A device whose streams can be held, behind an observer; null on a real one.
struct Held : Observed {
  explicit Held(std::shared_ptr<host::HostDriver> beneath)
      : Observed(beneath), device(std::move(beneath)) {}
  static std::unique_ptr<Held> open() {
    auto device = std::dynamic_pointer_cast<host::HostDriver>(open_bare_test_driver());
    return device ? std::make_unique<Held>(std::move(device)) : nullptr;
  }
  std::unique_ptr<host::Hold> hold(StreamHandle stream) {
    std::unique_ptr<host::Hold> hold;
    CHECK_OK(device->hold(stream, &hold));
    return hold;
  }
  std::shared_ptr<host::HostDriver> device;
  Bench bench{driver};
};

std::vector<TraceEvent> work_in(const Trace& trace) {
  std::vector<TraceEvent> work;
  std::copy_if(trace.events().begin(), trace.events().end(), std::back_inserter(work), of_stream);
  return work;
}

}  // namespace

TEST(work_is_shown_until_it_ends_one_piece_after_the_other) {
  const auto held = Held::open();
  if (!held) return;
  Bench& bench = held->bench;
  const DevicePtr base = bench.mapped(1);
  const auto trace = held->start();
  auto hold = held->hold(bench.stream());
  CHECK_OK(bench->fill(base, 1, 64, bench.stream()));
  CHECK_OK(bench->fill(base, 1, 65, bench.stream()));
  held->device->advance_ns(1'000'000'000);
  const std::int64_t released_ns = held->driver->now_ns();
  hold.reset();
  CHECK_OK(bench->stream_synchronize(bench.stream()));
  const std::int64_t waited_ns = held->driver->now_ns();
  held->stop(*trace);
  check_well_formed(*trace);
  const std::vector<TraceEvent> work = work_in(*trace);
  CHECK_EQ(work.size(), 2);
  CHECK_EQ(work[0].begin_ns, work[0].enqueued_ns);  // nothing was before it
  CHECK_EQ(work[1].begin_ns, work[0].end_ns);
  CHECK(work[1].begin_ns - work[1].enqueued_ns >= 500'000'000);  // in the queue meanwhile
  for (const TraceEvent& event : work) {
    CHECK(event.kind == Kind::ran);
    CHECK(released_ns <= event.end_ns && event.end_ns <= waited_ns);
  }
}

TEST(a_wait_for_one_stream_says_nothing_of_another) {
  const auto held = Held::open();
  if (!held) return;
  Bench& bench = held->bench;
  const DevicePtr base = bench.mapped(1);
  StreamHandle other = nullptr;
  CHECK_OK(bench->stream_create(&other));
  const auto trace = held->start();
  auto hold = held->hold(other);
  CHECK_OK(bench->fill(base, 1, 64, other));
  CHECK_OK(bench->fill(base + 4096, 1, 65, bench.stream()));
  CHECK_OK(bench->stream_synchronize(bench.stream()));
  held->stop(*trace);
  hold.reset();
  CHECK_OK(bench->stream_destroy(other));
  check_well_formed(*trace);
  std::map<std::uint64_t, Kind> seen;
  for (const TraceEvent& event : work_in(*trace))
    CHECK(seen.emplace(event.bytes, event.kind).second);
  CHECK(seen == std::map<std::uint64_t, Kind>{{64, Kind::unfinished}, {65, Kind::ran}});
}

TEST(a_wait_for_all_ends_the_work_of_all_streams) {
  Observed observed;
  Bench bench(observed.driver);
  const DevicePtr base = bench.mapped(1);
  StreamHandle other = nullptr;
  CHECK_OK(bench->stream_create(&other));
  const auto trace = observed.start();
  CHECK_OK(bench->fill(base, 1, 64, other));
  CHECK_OK(bench->fill(base + 4096, 1, 65, bench.stream()));
  CHECK_OK(bench->context_synchronize());
  const std::int64_t waited_ns = observed.driver->now_ns();
  CHECK_OK(bench->stream_destroy(other));
  observed.stop(*trace);
  const std::vector<TraceEvent> work = work_in(*trace);
  CHECK_EQ(work.size(), 2);
  for (const TraceEvent& event : work) {
    CHECK(event.kind == Kind::ran && event.end_ns <= waited_ns);
  }
}

TEST(each_trace_has_tracks_of_its_own_with_names) {
  Observed observed;
  Bench bench(observed.driver);
  const DevicePtr base = bench.mapped(1);
  StreamHandle other = nullptr;
  CHECK_OK(bench->stream_create(&other));
  for (const bool both : {true, false}) {
    const auto trace = observed.start();
    if (both) CHECK_OK(bench->fill(base, 1, 64, bench.stream()));
    CHECK_OK(bench->fill(base + 4096, 1, 65, other));
    CHECK_OK(bench->context_synchronize());
    observed.stop(*trace);
    std::set<std::int32_t> tracks;
    const std::string json = json_of(*trace);
    for (const TraceEvent& event : work_in(*trace)) {
      tracks.insert(event.track);
      CHECK(json.find(R"("thread_name","pid":)") != std::string::npos);
      CHECK(json.find("\"tid\":" + std::to_string(event.track) + R"(,"args":{"name":")") !=
            std::string::npos);
    }
    CHECK_EQ(tracks.size(), both ? 2 : 1);
    CHECK_EQ(*tracks.begin(), Trace::first_stream_track);
  }
  CHECK_OK(bench->stream_destroy(other));
}

TEST(a_stream_that_could_not_be_destroyed_keeps_its_track) {
  const auto plan = std::make_shared<FaultPlan>();
  Observed observed(with_faults(open_bare_test_driver(), plan));
  Bench bench(observed.driver);
  const DevicePtr base = bench.mapped(1);
  StreamHandle other = nullptr;
  CHECK_OK(bench->stream_create(&other));
  const auto trace = observed.start();
  CHECK_OK(bench->fill(base, 1, 64, other));
  CHECK_OK(bench->stream_synchronize(other));
  plan->arm(1, Status::unknown, true, true);
  CHECK_EQ(bench->stream_destroy(other), Status::unknown);
  plan->disarm();
  CHECK_OK(bench->fill(base, 1, 65, other));
  CHECK_OK(bench->stream_synchronize(other));
  observed.stop(*trace);
  CHECK_OK(bench->stream_destroy(other));
  const std::vector<TraceEvent> work = work_in(*trace);
  CHECK_EQ(work.size(), 2);
  CHECK_EQ(work[0].track, work[1].track);
}

TEST(a_failed_call_puts_no_work_on_a_stream) {
  const auto plan = std::make_shared<FaultPlan>();
  Observed observed(with_faults(open_bare_test_driver(), plan));
  Bench bench(observed.driver);
  const DevicePtr base = bench.mapped(1);
  const auto trace = observed.start();
  plan->arm(1, Status::out_of_memory, true);
  CHECK_EQ(bench->fill(base, 1, 64, bench.stream()), Status::out_of_memory);
  plan->disarm();
  observed.stop(*trace);
  CHECK(work_in(*trace).empty());
  CHECK_EQ(observed.observer->statistics().filled_bytes, 0);
  bool found = false;
  for (const TraceEvent& event : trace->events()) {
    if (event.call != DriverCall::fill) continue;
    found = event.status == static_cast<std::int32_t>(Status::out_of_memory);
  }
  CHECK(found);
}

// What is in flight at once is bounded, and the events that watch it are few.
TEST(work_beyond_what_can_be_watched_is_dropped_and_counted) {
  const auto held = Held::open();
  if (!held) return;
  Bench& bench = held->bench;
  const DevicePtr base = bench.mapped(1);
  const auto trace = held->start();
  auto hold = held->hold(bench.stream());
  for (std::size_t i = 0; i < Watcher::in_flight_max + 5; ++i) {
    CHECK_OK(bench->fill(base, 1, 64, bench.stream()));
  }
  hold.reset();
  CHECK_OK(bench->stream_synchronize(bench.stream()));
  CHECK_OK(bench->fill(base, 1, 65, bench.stream()));  // there is room again
  CHECK_OK(bench->stream_synchronize(bench.stream()));
  held->stop(*trace);
  CHECK_EQ(trace->dropped(), 5);
  CHECK_EQ(work_in(*trace).size(), Watcher::in_flight_max + 1);
}

TEST(events_are_used_again) {
  Observed beneath;
  Observed observed(beneath.driver);
  Bench bench(observed.driver);
  const DevicePtr base = bench.mapped(1);
  for (int round = 0; round < 2; ++round) {
    const auto trace = observed.start();
    for (int i = 0; i < 100; ++i) {
      CHECK_OK(bench->fill(base, 1, 64, bench.stream()));
      CHECK_OK(bench->stream_synchronize(bench.stream()));
    }
    observed.stop(*trace);
    CHECK_EQ(work_in(*trace).size(), 100);
  }
  CHECK_EQ(observed.observer->statistics().events, 0);  // its own are not the caller's
  CHECK_EQ(beneath.observer->statistics().events, 1);
}

// What a trace shows of swaps, and that looking changes nothing.
#include <atomic>
#include <thread>

#include "traced_bench.h"

using namespace gpupool;

namespace {

using Kind = TraceEvent::Kind;

// Fails every call of one kind that the observer makes for itself; its caller makes none.
class Without final : public Driver {
 public:
  Without(DriverPtr inner, DriverCall refused) : inner_(std::move(inner)), refused_(refused) {}
#define FORWARD(name, params, args, needs_context)                                           \
  Status name params noexcept override {                                                     \
    return DriverCall::name == refused_ ? (++refusals, Status::unknown) : inner_->name args; \
  }
  GPUPOOL_DRIVER_CALLS(FORWARD)
#undef FORWARD
  std::int64_t now_ns() const noexcept override { return inner_->now_ns(); }
  DeviceKind kind() const noexcept override { return inner_->kind(); }
  int ordinal() const noexcept override { return inner_->ordinal(); }
  std::atomic<int> refusals{0};

 private:
  DriverPtr inner_;
  const DriverCall refused_;
};

}  // namespace

TEST(a_trace_shows_every_byte_of_swaps_in_two_threads) {
  Traced traced;
  const auto trace = traced.start();
  std::atomic<std::size_t> copied{0}, filled{0};
  std::vector<std::thread> threads;
  for (const OwnerId id : {1, 2}) {
    threads.emplace_back([&, id] {
      Traced::Owner owner(traced, id);
      for (int round = 0; round < 5; ++round) {
        const std::int64_t begin = traced.driver->now_ns();
        const SwapReport in = owner.swap_in();
        owner.memory.mark_written(*owner.region, {{5, page_bytes + 7}});
        const SwapReport out = owner.swap_out();
        traced.observer->span("round", begin, traced.driver->now_ns(), {});
        copied += in.copied_bytes + out.copied_bytes;
        filled += in.filled_bytes;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  traced.stop(*trace);
  check_well_formed(*trace);
  CHECK_EQ(trace->dropped(), 0);

  std::size_t copied_asked = 0, copied_ran = 0, filled_ran = 0, spans = 0;
  std::map<std::int32_t, std::vector<TraceEvent>> calls;
  for (const TraceEvent& event : trace->events()) {
    const bool copy =
        event.call == DriverCall::copy_to_device_digest || event.call == DriverCall::copy_to_host;
    if (event.kind == Kind::call && copy) copied_asked += event.bytes;
    if (event.kind == Kind::call) calls[event.track].push_back(event);
    if (event.kind == Kind::ran && copy) copied_ran += event.bytes;
    if (event.kind == Kind::ran && event.call == DriverCall::fill) filled_ran += event.bytes;
    spans += event.kind == Kind::span;
    CHECK(event.kind != Kind::unfinished);
  }
  CHECK_EQ(calls.size(), 2);
  CHECK_EQ(spans, 10);
  CHECK_EQ(copied_asked, copied);
  CHECK_EQ(copied_ran, copied);
  CHECK_EQ(filled_ran, filled);

  // What ran did so between the call that asked for it and the return of the wait after it.
  for (const TraceEvent& ran : trace->events()) {
    if (!of_stream(ran)) continue;
    bool found = false;
    for (const auto& [track, made] : calls) {
      const auto asked = std::find_if(made.begin(), made.end(), [&](const TraceEvent& call) {
        return call.call == ran.call && call.begin_ns == ran.enqueued_ns &&
               call.address == ran.address;
      });
      if (asked == made.end()) continue;
      const auto waited = std::find_if(asked, made.end(), [](const TraceEvent& call) {
        return call.call == DriverCall::stream_synchronize ||
               call.call == DriverCall::context_synchronize;
      });
      CHECK(waited != made.end());
      CHECK(asked->begin_ns <= ran.begin_ns && ran.end_ns <= waited->end_ns);
      found = true;
    }
    CHECK(found);
  }
}

TEST(what_the_observer_calls_may_fail_without_a_word) {
  for (const DriverCall refused :
       {DriverCall::event_create, DriverCall::event_record, DriverCall::event_query}) {
    const auto without = std::make_shared<Without>(open_bare_test_driver(), refused);
    Traced traced(without);
    const auto trace = traced.start();
    Traced::Owner owner(traced, 1);
    owner.swap_in();
    owner.swap_out();
    owner.swap_in();
    traced.stop(*trace);
    check_well_formed(*trace);
    if (refused != DriverCall::event_query) {
      CHECK(without->refusals > 0);
      CHECK(trace->dropped() > 0);  // and said so
      for (const TraceEvent& event : trace->events()) CHECK(!of_stream(event));
    }
    for (const CallCount& count : traced.observer->statistics().calls) {
      CHECK_EQ(count.failures, 0);
    }
  }
}

TEST(a_trace_ends_while_work_is_held) {
  const auto device = std::dynamic_pointer_cast<host::HostDriver>(open_bare_test_driver());
  if (!device) return;  // nothing can be held on a real device
  Observed observed(device);
  Bench bench(observed.driver);
  const DevicePtr base = bench.mapped(1);
  const auto trace = observed.start();
  CHECK_OK(bench->fill(base, 1, 64, bench.stream()));
  CHECK_OK(bench->stream_synchronize(bench.stream()));
  std::unique_ptr<host::Hold> hold;
  CHECK_OK(device->hold(bench.stream(), &hold));
  CHECK_OK(bench->fill(base, 2, 65, bench.stream()));
  CHECK_OK(bench->copy_to_host(bench.staging(), base, 66, bench.stream()));
  observed.stop(*trace);
  check_well_formed(*trace);
  std::vector<std::pair<std::uint64_t, Kind>> seen;
  for (const TraceEvent& event : trace->events()) {
    if (of_stream(event)) seen.emplace_back(event.bytes, event.kind);
  }
  CHECK(seen == std::vector<std::pair<std::uint64_t, Kind>>{
                    {64, Kind::ran}, {65, Kind::unfinished}, {66, Kind::unfinished}});
  CHECK(json_of(*trace).find("\"unfinished\":true") != std::string::npos);
  // The next trace is not confused by what the first left behind.
  const auto second = observed.start();
  hold.reset();
  CHECK_OK(bench->stream_synchronize(bench.stream()));
  CHECK_OK(bench->fill(base, 2, 67, bench.stream()));
  CHECK_OK(bench->context_synchronize());
  observed.stop(*second);
  std::size_t shown = 0;
  for (const TraceEvent& event : second->events()) {
    if (!of_stream(event)) continue;
    ++shown;
    CHECK_EQ(event.bytes, 67);
    CHECK(event.kind == Kind::ran);
  }
  CHECK_EQ(shown, 1);
}

TEST(streams_may_go_while_they_are_watched) {
  Observed observed;
  Bench bench(observed.driver);
  const DevicePtr base = bench.mapped(2);
  const auto trace = observed.start();
  for (int round = 0; round < 40; ++round) {
    StreamHandle gone = nullptr;
    CHECK_OK(bench->stream_create(&gone));
    CHECK_OK(bench->fill(base, 1, page_bytes, gone));
    CHECK_OK(bench->stream_destroy(gone));
    CHECK(bench->stream_destroy(reinterpret_cast<StreamHandle>(8)) != Status::success);
  }
  CHECK_OK(bench->context_synchronize());
  observed.stop(*trace);
  check_well_formed(*trace);
  std::map<std::int32_t, int> tracks;  // a handle used again is another stream
  for (const TraceEvent& event : trace->events()) {
    if (of_stream(event)) ++tracks[event.track];
  }
  CHECK_EQ(tracks.size(), 40);
  for (const auto& [track, count] : tracks) CHECK_EQ(count, 1);
}

TEST(a_wait_for_another_stream_takes_time_on_the_timeline) {
  Observed observed;
  Bench bench(observed.driver);
  const DevicePtr base = bench.mapped(1);
  StreamHandle other = nullptr;
  EventHandle event = nullptr;
  CHECK_OK(bench->stream_create(&other));
  CHECK_OK(bench->event_create(&event));
  const auto trace = observed.start();
  CHECK_OK(bench->fill(base, 1, page_bytes, bench.stream()));
  CHECK_OK(bench->event_record(event, bench.stream()));
  CHECK_OK(bench->stream_wait_event(other, event));
  CHECK_OK(bench->fill(base, 2, 4096, other));
  CHECK_OK(bench->stream_synchronize(other));
  observed.stop(*trace);
  check_well_formed(*trace);
  std::int64_t waited_until = 0;
  int fills = 0;
  for (const TraceEvent& shown : trace->events()) {
    if (!of_stream(shown)) continue;
    if (shown.call == DriverCall::stream_wait_event) waited_until = shown.end_ns;
    if (shown.bytes != 4096) continue;
    ++fills;
    CHECK(waited_until != 0 && shown.begin_ns >= waited_until);
  }
  CHECK_EQ(fills, 1);
  CHECK_OK(bench->stream_destroy(other));
  CHECK_OK(bench->event_destroy(event));
}

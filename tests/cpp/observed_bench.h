// A driver behind an observer, and what a trace of it must look like.
#pragma once

#include <map>

#include "model_bench.h"

namespace gpupool {

// Whatever the switches of the test program say, one observer and no trace yet.
struct Observed {
  explicit Observed(DriverPtr beneath = open_bare_test_driver())
      : driver(with_observer(std::move(beneath), observer, test_watch_mode())) {}
  std::shared_ptr<Trace> start(std::size_t capacity = Trace::default_capacity) {
    auto trace = std::make_shared<Trace>(capacity);
    observer->start(trace);
    return trace;
  }
  void stop(Trace& trace) {
    observer->stop();
    trace.close();
  }
  std::shared_ptr<Observer> observer = std::make_shared<Observer>();
  DriverPtr driver;
};

inline bool of_stream(const TraceEvent& event) {
  return event.kind == TraceEvent::Kind::ran || event.kind == TraceEvent::Kind::unfinished;
}

// Slices of a thread nest, those of a stream come one after the other; both in order of time.
inline void check_well_formed(const Trace& trace) {
  std::map<std::int32_t, std::vector<TraceEvent>> tracks;
  for (const TraceEvent& event : trace.events()) {
    CHECK(event.begin_ns <= event.end_ns);
    CHECK_EQ(event.track >= Trace::first_stream_track, of_stream(event));
    if (of_stream(event)) {
      CHECK(event.enqueued_ns <= event.begin_ns);
      auto& before = tracks[event.track];
      CHECK(before.empty() || before.back().end_ns <= event.begin_ns);
    }
    tracks[event.track].push_back(event);
  }
  for (auto& [number, events] : tracks) {
    if (number >= Trace::first_stream_track) continue;
    std::stable_sort(events.begin(), events.end(), [](const auto& a, const auto& b) {
      return std::pair(a.begin_ns, -a.end_ns) < std::pair(b.begin_ns, -b.end_ns);
    });
    std::vector<std::int64_t> open;  // ends of the slices that enclose
    for (const TraceEvent& event : events) {
      while (!open.empty() && open.back() <= event.begin_ns) open.pop_back();
      CHECK(open.empty() || event.end_ns <= open.back());
      open.push_back(event.end_ns);
    }
  }
}

inline std::string json_of(const Trace& trace) {
  std::string json;
  trace.write([&](std::string_view piece) { json += piece; });
  return json;
}

}  // namespace gpupool

// Runs a scenario once for every driver call and every allocation that can fail in it.
#pragma once

#include <unistd.h>

#include <span>

#include "fault_world.h"

namespace gpupool {

// Pinned memory and reservations of what ends in use: they stay where so many waits for the device
// are refused, which are all that it asks for.
struct Ended {
  std::size_t images = 0, addresses = 0, waits = 0;
};

struct Scenario {
  const char* name;
  std::function<void(World&)> prepare;
  std::function<void(World&)> run;
  // run() ends what is mapped or in use: nobody unmaps later what the driver refused to.
  std::optional<Ended> ends = {};
  // Once nothing fails any more: what must hold after a run that failed, or did not.
  std::function<void(World&, bool failed)> after = [](World&, bool) {};
};

// Where scenarios begin.
inline void nothing(World&) {}
inline void resident(World& w) { w.a->swap_in(); }
inline void written(World& w) {
  w.a->swap_in();
  w.a->write(100);
}
inline void saved(World& w) {
  written(w);
  w.a->swap_out();
}

// A file that is closed in the end.
struct Fd {
  int fd = -1;
  ~Fd() {
    if (fd >= 0) close(fd);
  }
};

// Of pages, host memory, streams and slabs, and of models.
std::span<const Scenario> memory_scenarios();
std::span<const Scenario> model_scenarios();

struct Totals {
  std::uint64_t injections = 0, failures = 0;
  std::map<DriverCall, std::uint64_t> hits;
};

// Every failure there is, one at a time, each on a world of its own; prints what failed.
void run(const Scenario& scenario, Totals& totals);
// Once, where the call fails that is named, if it is made at all.
void run_failing(const Scenario& scenario, DriverCall call, Totals& totals);

}  // namespace gpupool

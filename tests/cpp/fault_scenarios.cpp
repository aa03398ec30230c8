// Fails the n-th driver call, and then the n-th allocation, of every scenario there is, for n = 1,
// 2,
// ... until a run meets no failure: once and from then on, with three codes. After each the content
// is right, the next operation works, and nothing is held once all is closed.
//
//   fault_scenarios [scenario]     the last line is "injections=N failures=M"
#include <cstdio>

#include "fault_runner.h"

using namespace gpupool;

int main(int count, char** arguments) {
  Totals totals;
  const std::string only = count > 1 ? arguments[1] : "";
  std::size_t scenarios = 0;
  for (const auto of : {memory_scenarios(), model_scenarios()}) {
    scenarios += of.size();
    for (const Scenario& scenario : of) {
      if (only.empty() || only == scenario.name) run(scenario, totals);
    }
  }
  if (only.empty()) {
    // What is called once or twice can slip through where an observer calls as time will have it.
    for (const auto of : {memory_scenarios(), model_scenarios()}) {
      for (const Scenario& scenario : of) {
#define TRY(name, params, args, needs_context) \
  if (totals.hits[DriverCall::name] == 0) run_failing(scenario, DriverCall::name, totals);
        GPUPOOL_DRIVER_CALLS(TRY)
#undef TRY
      }
    }
    int missed = 0;
#define MISSED(name, params, args, needs_context)         \
  if (totals.hits[DriverCall::name] == 0) {               \
    ++missed;                                             \
    std::printf("FAILED  no scenario fails %s\n", #name); \
  }
    GPUPOOL_DRIVER_CALLS(MISSED)
#undef MISSED
    std::printf("scenarios=%zu driver_calls_hit=%zu missed=%d\n", scenarios,
                totals.hits.size() - static_cast<std::size_t>(missed), missed);
    totals.failures += static_cast<std::uint64_t>(missed);
  }
  std::printf("injections=%llu failures=%llu\n", static_cast<unsigned long long>(totals.injections),
              static_cast<unsigned long long>(totals.failures));
  return totals.failures == 0 ? 0 : 1;
}

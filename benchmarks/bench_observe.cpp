// What it costs to be observed: one driver call undecorated, counted and traced, in nanoseconds of
// processor time, medians of rounds in which each takes its turn.
//
//   bench_observe [--json FILE|-]
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "driver/observe.h"

using namespace gpupool;

namespace {

constexpr int rounds = 21, calls = 20'000;

double thread_ns() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e9 * double(now.tv_sec) + double(now.tv_nsec);
}

// The cheapest call there is: anything else hides more of the cost.
double of_one_call(Driver& driver) {
  std::size_t bytes = 0;
  const double begin = thread_ns();
  for (int i = 0; i < calls; ++i) static_cast<void>(driver.page_granularity(&bytes));
  return (thread_ns() - begin) / calls;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int count, char** arguments) {
  const DriverPtr bare = open_host_driver();
  const auto observer = std::make_shared<Observer>();
  const DriverPtr counted = with_observer(bare, observer);
  std::vector<double> of_bare, of_counted, of_traced;
  for (int round = 0; round < rounds; ++round) {
    of_bare.push_back(of_one_call(*bare));
    of_counted.push_back(of_one_call(*counted));
    const auto trace = std::make_shared<Trace>();
    observer->start(trace);
    of_traced.push_back(of_one_call(*counted));
    observer->stop();
  }
  const double plain = median(of_bare), counting = median(of_counted), tracing = median(of_traced);
  if (count == 3 && std::string(arguments[1]) == "--json") {
    const std::string path = arguments[2];
    std::FILE* file = path == "-" ? stdout : std::fopen(path.c_str(), "w");
    if (file == nullptr) return 1;
    std::fprintf(file, "{\"undecorated_ns\": %.1f, \"counted_ns\": %.1f, \"traced_ns\": %.1f}\n",
                 plain, counting, tracing);
    return file == stdout || std::fclose(file) == 0 ? 0 : 1;
  }
  std::printf("undecorated %8.1f ns\ncounted     %8.1f ns\ntraced      %8.1f ns\n", plain, counting,
              tracing);
  return 0;
}

// How long it takes to map a large region of pages and to unmap it: every call of the driver by
// itself, and both as a whole through gpupool::Mapping.
//
//   cmake -S . -B build/cpp && cmake --build build/cpp --target bench_map
//   build/cpp/bench_map --device host|cuda [--json FILE|-] [--gib N] [--page-mib N] [--rounds N]
//
// On cuda every page is another. On host, whose fresh pages are filled with poison, a few pages are
// mapped again and again: 256 MiB of them in all, as the output says.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "driver/host.h"
#include "memory/memory.h"

namespace {

using namespace gpupool;
constexpr std::size_t mib = std::size_t{1} << 20;
constexpr std::size_t distinct_host_bytes = 256 * mib;

double now_us() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e6 * static_cast<double>(now.tv_sec) + 1e-3 * static_cast<double>(now.tv_nsec);
}

double at(std::vector<double> values, double part) {
  const auto place = static_cast<long>(part * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + place, values.end());
  return values[static_cast<std::size_t>(place)];
}

struct Times {
  std::vector<double> map, set_access, unmap;  // each call, microseconds
  std::vector<double> whole_map, whole_unmap;  // of a Mapping, microseconds
};

Times measure(const DriverPtr& driver, const std::vector<PagePtr>& pages, int rounds) {
  const std::size_t page_bytes = pages[0]->bytes();
  const auto reservation = std::make_shared<Reservation>(driver, pages.size() * page_bytes);
  Times times;
  for (int round = -1; round < rounds; ++round) {
    Times once;
    double begun = now_us();
    const auto lap = [&](std::vector<double>& into) {
      const double ended = now_us();
      into.push_back(ended - begun);
      begun = now_us();
    };
    DevicePtr address = reservation->address();
    for (const PagePtr& page : pages) {
      GPUPOOL_CALL(driver, map, address, page_bytes, page->handle());
      lap(once.map);
      address += page_bytes;
    }
    GPUPOOL_CALL(driver, set_access, reservation->address(), reservation->bytes());
    lap(once.set_access);
    GPUPOOL_CALL(driver, unmap, reservation->address(), reservation->bytes());
    lap(once.unmap);
    Mapping mapping(driver, reservation, pages);
    begun = now_us();
    mapping.map();
    lap(once.whole_map);
    mapping.unmap();
    lap(once.whole_unmap);
    if (round < 0) continue;  // the first fills the driver's own tables
    for (auto part :
         {&Times::map, &Times::set_access, &Times::unmap, &Times::whole_map, &Times::whole_unmap}) {
      (times.*part).insert((times.*part).end(), (once.*part).begin(), (once.*part).end());
    }
  }
  return times;
}

}  // namespace

int main(int argc, char** argv) {
  const char* json = nullptr;
  std::string device;
  std::size_t region_bytes = std::size_t{16} << 30;
  std::vector<std::size_t> page_mibs{2, 32, 64, 128};
  int rounds = 0;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const int number = std::max(1, std::atoi(argv[i + 1]));
    if (name == "--json") json = argv[i + 1];
    if (name == "--device") device = argv[i + 1];
    if (name == "--gib") region_bytes = static_cast<std::size_t>(number) << 30;
    if (name == "--page-mib") page_mibs = {static_cast<std::size_t>(number)};
    if (name == "--rounds") rounds = number;
  }
  if (device != "host" && device != "cuda") {
    std::fprintf(stderr, "name the device: --device host or --device cuda\n");
    return 2;
  }
  // The host device fills the page tables for every 4 KiB, which takes seconds.
  if (rounds == 0) rounds = device == "cuda" ? 11 : 1;
  std::FILE* out = json == nullptr || std::strcmp(json, "-") == 0 ? stdout : std::fopen(json, "w");
  if (out == nullptr) return std::perror(json), 1;
  try {
    const DriverPtr driver = device == "host" ? open_host_driver() : open_cuda_driver(0);
    if (json != nullptr) {
      std::fprintf(out, "{\"device\": \"%s\", \"region_bytes\": %zu, \"rounds\": %d, \"pages\": [",
                   device.c_str(), region_bytes, rounds);
    }
    const char* comma = "";
    for (const std::size_t page_mib : page_mibs) {
      const std::size_t page_bytes = page_mib * mib;
      const std::size_t count = region_bytes / page_bytes;
      const std::size_t distinct =
          device == "cuda" ? count
                           : std::clamp<std::size_t>(distinct_host_bytes / page_bytes, 1, count);
      std::vector<PagePtr> pages;
      for (std::size_t i = 0; i < count; ++i) {
        pages.push_back(i < distinct ? Page::create(driver, page_bytes) : pages[i - distinct]);
      }
      const Times t = measure(driver, pages, rounds);
      const char* line =
          json != nullptr
              ? "%s{\"page_bytes\": %zu, \"count\": %zu, \"distinct_pages\": %zu, "
                "\"map_us\": %.2f, \"map_p99_us\": %.2f, \"set_access_us\": %.1f, "
                "\"unmap_us\": %.1f, \"whole_map_us\": %.1f, \"whole_unmap_us\": %.1f}"
              : "%spage %zu bytes, %zu mapped, %zu of them distinct: a map %.2f us (99%%: %.2f), "
                "set_access %.1f us, unmap %.1f us; whole: map %.1f us, unmap %.1f us\n";
      std::fprintf(out, line, comma, page_bytes, count, distinct, at(t.map, 0.5), at(t.map, 0.99),
                   at(t.set_access, 0.5), at(t.unmap, 0.5), at(t.whole_map, 0.5),
                   at(t.whole_unmap, 0.5));
      std::fflush(out);
      if (json != nullptr) comma = ", ";
    }
    if (json != nullptr) std::fprintf(out, "]}\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

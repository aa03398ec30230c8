// How fast a digest is, and a copy with one, beside memcpy and plain reading: all in one run on one
// thread, in turns, medians of the rounds.
//
//   cmake -S . -B build/cpp && cmake --build build/cpp --target bench_digest
//   build/cpp/bench_digest [--json FILE|-] [--rounds N] [--mib N]
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "digest/digest.h"

namespace {

using gpupool::DigestPath;

double now_s() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<long>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

// The sum of the words: the least that a pass over all bytes can do.
std::uint64_t read_all(const std::byte* data, std::size_t bytes) {
  std::uint64_t sum = 0;
  for (std::size_t at = 0; at + 8 <= bytes; at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, data + at, 8);
    sum += word;
  }
  return sum;
}

void keep(std::uint64_t value) { asm volatile("" : : "r"(value) : "memory"); }

}  // namespace

int main(int argc, char** argv) {
  const char* json = nullptr;
  int rounds = 11;
  std::size_t mib = 256;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--json") == 0) json = argv[i + 1];
    if (std::strcmp(argv[i], "--rounds") == 0) rounds = std::max(1, std::atoi(argv[i + 1]));
    if (std::strcmp(argv[i], "--mib") == 0)
      mib = static_cast<std::size_t>(std::max(1, std::atoi(argv[i + 1])));
  }
  const std::size_t large = mib << 20;
  const std::size_t small = std::size_t{128} << 10;  // stays in the processor's second-level cache
  std::vector<std::byte> source(large), target(large);
  for (std::size_t i = 0; i < large; ++i) source[i] = static_cast<std::byte>(i * 2654435761U >> 13);
  const std::byte* from = source.data();
  std::byte* to = target.data();

  std::vector<std::pair<std::string, std::function<void(std::size_t)>>> works{
      {"memcpy",
       [&](std::size_t bytes) {
         std::memcpy(to, from, bytes);
         keep(reinterpret_cast<std::uintptr_t>(to));
       }},
      {"read", [&](std::size_t bytes) { keep(read_all(from, bytes)); }},
      {"digest_then_memcpy", [&](std::size_t bytes) {
         keep(gpupool::digest(from, bytes));
         std::memcpy(to, from, bytes);
         keep(reinterpret_cast<std::uintptr_t>(to));
       }}};
  for (const DigestPath& path : gpupool::digest_paths()) {
    works.push_back({std::string("digest_") + path.name,
                     [&](std::size_t bytes) { keep(path.run(nullptr, from, bytes / 8, 0)); }});
    works.push_back({std::string("copy_with_digest_") + path.name,
                     [&](std::size_t bytes) { keep(path.run(to, from, bytes / 8, 0)); }});
  }

  std::vector<std::vector<double>> memory(works.size()), cache(works.size());
  for (int round = -1; round < rounds; ++round) {
    for (std::size_t i = 0; i < works.size(); ++i) {
      const double begun_s = now_s();
      works[i].second(large);
      const double between_s = now_s();
      for (std::size_t done = 0; done < large; done += small) works[i].second(small);
      const double ended_s = now_s();
      if (round < 0) continue;  // the first touches the pages
      memory[i].push_back(1e-9 * static_cast<double>(large) / (between_s - begun_s));
      cache[i].push_back(1e-9 * static_cast<double>(large) / (ended_s - between_s));
    }
  }

  std::FILE* out = json == nullptr || std::strcmp(json, "-") == 0 ? stdout : std::fopen(json, "w");
  if (out == nullptr) return std::perror(json), 1;
  if (json != nullptr) {
    std::fprintf(out, "{\"bytes\": %zu, \"cached_bytes\": %zu, \"rounds\": %d", large, small,
                 rounds);
  } else {
    std::printf("%-26s %12s %12s\n", "GB/s", "from memory", "from cache");
  }
  for (std::size_t i = 0; i < works.size(); ++i) {
    const char* line = json != nullptr ? ", \"%s_gbps\": {\"memory\": %.2f, \"cache\": %.2f}"
                                       : "%-26s %12.2f %12.2f\n";
    std::fprintf(out, line, works[i].first.c_str(), median(memory[i]), median(cache[i]));
  }
  if (json != nullptr) std::fprintf(out, "}\n");
  return 0;
}

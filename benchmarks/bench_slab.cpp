// How long an allocation and its free take, beside the C library's malloc and, where their
// libraries are found, mimalloc and jemalloc: all in one run, in turns, medians of the rounds.
//
//   cmake -S . -B build/cpp && cmake --build build/cpp --target bench_slab
//   build/cpp/bench_slab [--json FILE|-] [--rounds N]
//
// The rivals are loaded with dlopen, so nothing is needed to build (Debian: libmimalloc2.0,
// libjemalloc2). Every allocator is called through the same two function pointers; slab_inline is
// the slab allocator as C++ code uses it. See README.md for the workloads.
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "image/host_slabs.h"

namespace {

using gpupool::BlockHandle;
using gpupool::SlabAllocator;
constexpr std::size_t block_bytes = 256;
constexpr int ops = 1'000'000;
constexpr std::size_t live_blocks = 10'000;

std::shared_ptr<SlabAllocator> slabs;

struct Allocator {  // both words wide: a pointer or a handle
  void* (*allocate)(std::size_t);
  void (*free)(void*);
};
struct Called {
  const Allocator& functions;
  void* allocate() const { return functions.allocate(block_bytes); }
  void free(void* block) const { functions.free(block); }
};
struct Inline {
  SlabAllocator& allocator;
  void* allocate() const { return reinterpret_cast<void*>(allocator.allocate(0)); }
  void free(void* block) const {
    allocator.free(static_cast<BlockHandle>(reinterpret_cast<std::uintptr_t>(block)));
  }
};

void keep(void* block) { asm volatile("" : : "r"(block) : "memory"); }

template <typename A>
void pair(const A& a, int, int) {
  for (int i = 0; i < ops; ++i) {
    void* block = a.allocate();
    keep(block);
    a.free(block);
  }
}

template <typename A>
void batch(const A& a, int, int) {
  void* blocks[64];
  for (int i = 0; i < ops / 64; ++i) {
    for (void*& block : blocks) keep(block = a.allocate());
    for (void* block : blocks) a.free(block);
  }
}

template <typename A>
void replace(const A& a, int thread, int) {
  std::vector<void*> blocks(live_blocks);
  for (void*& block : blocks) block = a.allocate();
  std::uint32_t random = 12345 + static_cast<std::uint32_t>(thread);
  for (int i = 0; i < ops; ++i) {
    random = random * 1664525 + 1013904223;
    void*& block = blocks[(std::uint64_t{random} * live_blocks) >> 32];
    a.free(block);
    keep(block = a.allocate());
  }
  for (void* block : blocks) a.free(block);
}

struct Ring {
  std::atomic<void*> cells[256]{};
};
Ring ring;

// The first thread allocates, the second frees.
template <typename A>
void handoff(const A& a, int thread, int) {
  for (int i = 0; i < ops; ++i) {
    auto& cell = ring.cells[i % 256];
    if (thread == 0) {
      void* block = a.allocate();
      while (cell.load(std::memory_order_acquire) != nullptr) std::this_thread::yield();
      cell.store(block, std::memory_order_release);
    } else {
      void* block = nullptr;
      while ((block = cell.load(std::memory_order_acquire)) == nullptr) std::this_thread::yield();
      cell.store(nullptr, std::memory_order_release);
      a.free(block);
    }
  }
}

// Of this thread alone: other programs on the machine take none of it.
double cpu_ns() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e9 * static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec);
}

// Processor time of one pair of calls in nanoseconds, of the thread that took longest.
template <typename Work>
double measure(int threads, Work work) {
  std::atomic<int> ready{0};
  std::vector<double> taken_ns(static_cast<std::size_t>(threads));
  std::vector<std::thread> all;
  for (int thread = 0; thread < threads; ++thread) {
    all.emplace_back([&, thread] {
      ++ready;
      while (ready.load() < threads) std::this_thread::yield();
      const double begun_ns = cpu_ns();
      work(thread, threads);
      taken_ns[static_cast<std::size_t>(thread)] = (cpu_ns() - begun_ns) / ops;
    });
  }
  for (std::thread& thread : all) thread.join();
  return *std::max_element(taken_ns.begin(), taken_ns.end());
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<long>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

bool load(const char* library, const char* allocate, const char* free, Allocator* into) {
  void* loaded = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (loaded == nullptr) {
    std::fprintf(stderr, "left out: %s\n", dlerror());
    return false;
  }
  into->allocate = reinterpret_cast<void* (*)(std::size_t)>(dlsym(loaded, allocate));
  into->free = reinterpret_cast<void (*)(void*)>(dlsym(loaded, free));
  return into->allocate != nullptr && into->free != nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  // Debian's jemalloc wants more room for its thread-local data than the loader keeps free.
  if (std::getenv("GLIBC_TUNABLES") == nullptr) {
    setenv("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=16384", 1);
    execv("/proc/self/exe", argv);
  }
  const char* json = nullptr;
  int rounds = 11;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--json") == 0) json = argv[i + 1];
    if (std::strcmp(argv[i], "--rounds") == 0) rounds = std::max(1, std::atoi(argv[i + 1]));
  }
  slabs = SlabAllocator::create(
      std::make_shared<gpupool::HostSlabs>(gpupool::open_host_driver(), std::size_t{2} << 20),
      {{block_bytes}, 64});

  std::vector<std::pair<std::string, Allocator>> rivals;
  rivals.push_back({"slab",
                    {[](std::size_t) { return Inline{*slabs}.allocate(); },
                     [](void* block) { Inline{*slabs}.free(block); }}});
  rivals.push_back({"malloc", {std::malloc, std::free}});
  Allocator loaded{};
  if (load("libmimalloc.so.2", "mi_malloc", "mi_free", &loaded))
    rivals.push_back({"mimalloc", loaded});
  if (load("libjemalloc.so.2", "malloc", "free", &loaded)) rivals.push_back({"jemalloc", loaded});

  std::map<std::string, std::map<std::string, std::vector<double>>> taken;
  const auto run = [&](const std::string& name, const auto& a) {
    const auto once = [&](const std::string& workload, int threads, auto work) {
      taken[workload + "_" + std::to_string(threads)][name].push_back(measure(threads, work));
    };
    for (const int threads : {1, 2}) {
      once("pair", threads, [&](int thread, int of) { pair(a, thread, of); });
      once("batch", threads, [&](int thread, int of) { batch(a, thread, of); });
      once("replace", threads, [&](int thread, int of) { replace(a, thread, of); });
    }
    once("handoff", 2, [&](int thread, int of) { handoff(a, thread, of); });
  };
  for (int round = 0; round < rounds; ++round) {
    for (const auto& [name, functions] : rivals) run(name, Called{functions});
    run("slab_inline", Inline{*slabs});
  }

  std::FILE* out = json == nullptr || std::strcmp(json, "-") == 0 ? stdout : std::fopen(json, "w");
  if (out == nullptr) return std::perror(json), 1;
  if (json != nullptr)
    std::fprintf(out, "{\"block_bytes\": %zu, \"rounds\": %d", block_bytes, rounds);
  for (const auto& [workload, names] : taken) {
    std::fprintf(out, json != nullptr ? ", \"%s_ns\": {" : "%-10s ns", workload.c_str());
    const char* comma = "";
    for (const auto& [name, values] : names) {
      std::fprintf(out, json != nullptr ? "%s\"%s\": %.2f" : "%s  %s %.2f", comma, name.c_str(),
                   median(values));
      if (json != nullptr) comma = ", ";
    }
    std::fprintf(out, json != nullptr ? "}" : "\n");
  }
  if (json != nullptr) std::fprintf(out, "}\n");
  return 0;
}

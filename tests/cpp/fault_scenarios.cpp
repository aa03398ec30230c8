// Fails the n-th driver call, and then the n-th allocation, of every scenario below, for n = 1, 2,
// ... until a run meets no failure: once and from then on, with three codes. After each the content
// is right, the next operation works, and nothing is held once all is closed.
//
//   fault_scenarios [scenario]     the last line is "injections=N failures=M"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <new>

#include "fault_world.h"

using namespace gpupool;

namespace {

// Allocations of this thread: the n-th from now fails, and with `persistent` so do all after it.
struct AllocationPlan {
  std::uint64_t nth = 0;  // 0: none fails
  bool persistent = false;
  std::uint64_t injected = 0;
};
thread_local AllocationPlan allocations;

void* allocate(std::size_t bytes) {
  if (allocations.nth == 1) {
    if (!allocations.persistent) allocations.nth = 0;
    ++allocations.injected;
    throw std::bad_alloc();
  }
  if (allocations.nth > 1) --allocations.nth;
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes); }
void* operator new[](std::size_t bytes) { return allocate(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

struct Scenario {
  const char* name;
  std::function<void(World&)> prepare;
  std::function<void(World&)> run;
  bool closes = false;  // run() closes things, whose calls then fail too
};

const auto nothing = [](World&) {};
const auto resident = [](World& w) { w.a->swap_in(); };
const auto written = [](World& w) {
  w.a->swap_in();
  w.a->write(100);
};
const auto saved = [](World& w) {
  written(w);
  w.a->swap_out();
};

ReservationPtr reserve(World& w, std::size_t pages) {
  return std::make_shared<const Reservation>(w.driver, pages * page_bytes);
}

struct Fd {
  int fd = -1;
  ~Fd() {
    if (fd >= 0) close(fd);
  }
};

const Scenario scenarios[] = {
    {"open a pool", nothing, [](World& w) { PagePool(w.driver, 2 * page_bytes, page_bytes); }},
    {"create pages", nothing, [](World& w) { w.pool->acquire(7, 3); }},
    {"create pages ahead of others", nothing,
     [](World& w) {
       w.pool->acquire(7, 1);
       w.pool->acquire(8, 2);
       w.pool->give_back_all(7);
     }},
    {"export a page", [](World& w) { w.pool->acquire(7, 1); },
     [](World& w) { const Fd fd{w.pool->page(0)->export_fd()}; }},
    {"import a page", [](World& w) { w.pool->acquire(7, 1); },
     [](World& w) {
       const Fd fd{w.pool->page(0)->export_fd()};
       w.made.push_back(Page::import(w.driver, fd.fd, page_bytes));
     }},
    {"reserve addresses", nothing, [](World& w) { reserve(w, 4); }},
    {"map", nothing,
     [](World& w) {
       Mapping mapping(w.driver, reserve(w, 2), w.acquire(7, 2));
       mapping.map();
     },
     true},
    {"map, unmap and map again", nothing,
     [](World& w) {
       Mapping mapping(w.driver, reserve(w, 2), w.acquire(7, 2));
       mapping.map();
       mapping.unmap();
       mapping.map();
     },
     true},
    {"host memory", nothing, [](World& w) { HostMemory(w.driver, -1, 3 * mib); }},
    {"host memory over a file", nothing,
     [](World& w) {
       const Fd fd{memfd_create("image", MFD_CLOEXEC)};
       CHECK_EQ(ftruncate(fd.fd, mib), 0);
       HostMemory(w.driver, fd.fd, mib);
     }},
    {"streams and events", resident,
     [](World& w) {
       CopyStream first(w.driver, page_bytes), second(w.driver, page_bytes);
       const Event event(w.driver);
       first.fill(w.a->regions[1]->address() + 64, 0, 64);
       first.record(event);
       second.wait_for(event);
       static_cast<void>(event.done());
       event.wait();
       second.synchronize();
     }},
    {"ask for free memory", nothing,
     [](World& w) {
       std::size_t free_bytes = 0, total_bytes = 0;
       GPUPOOL_CALL(w.driver, memory_info, &free_bytes, &total_bytes);
     }},
    {"a new model", nothing, [](World& w) { ModelMemory(w.driver, page_bytes, mib); }},
    {"a region is added", nothing, [](World& w) { w.a->memory.add_region(Tag::weights, mib, -1); }},
    {"a workspace is added", saved,
     [](World& w) { w.a->memory.add_region(Tag::workspace, page_bytes + 1, -1); }},
    {"a region over a file is added", nothing,
     [](World& w) {
       const Fd fd{memfd_create("image", MFD_CLOEXEC)};
       CHECK_EQ(ftruncate(fd.fd, mib), 0);
       w.a->memory.add_region(Tag::cudagraph, mib, fd.fd);
     }},
    {"fill a fresh model", nothing, resident},
    {"swap in what was saved", saved, [](World& w) { w.a->swap_in(); }},
    {"swap out what was written", written, [](World& w) { w.a->swap_out(); }},
    {"swap out what was not", [](World& w) { saved(w), w.a->swap_in(); },
     [](World& w) { w.a->swap_out(); }},
    {"swap out what is written beside what is saved",
     [](World& w) {
       saved(w);
       w.a->swap_in();
       // A run that grows over several that were saved.
       w.a->memory.mark_written(*w.a->regions[1], {{4, 2052}});
     },
     [](World& w) { w.a->swap_out(); }},
    {"mark what is written", resident,
     [](World& w) { w.a->memory.mark_written(*w.a->regions[0], {{0, 16}, {32, 64}, {8, 40}}); }},
    {"adopt an image", nothing, [](World& w) { w.a->memory.adopt_image(*w.a->regions[0]); }},
    {"in and out", saved,
     [](World& w) {
       w.a->swap_in();
       w.a->swap_out();
     }},
    {"hand over to another model", written,
     [](World& w) {
       w.a->swap_out();
       w.b->swap_in();
     }},
    {"finish a torn swap",
     [](World& w) {
       saved(w);
       w.plan->arm(4, Status::unknown, true);
       CHECK_THROWS(DriverError, w.a->swap_in());
       w.plan->disarm();
       CHECK(w.a->memory.torn());
     },
     [](World& w) { w.a->swap_out(); }},
    {"close a model that is out", saved, [](World& w) { w.a.reset(); }, true},
    {"close a model that is resident", written, [](World& w) { w.a.reset(); }, true},
    {"close a model whose region is kept",
     [](World& w) {
       written(w);
       w.made.push_back(w.a->regions[0]);
     },
     [](World& w) { w.a.reset(); }, true},
    {"close the pool, then its models", written,
     [](World& w) {
       w.pool.reset();
       w.a.reset();
       w.b.reset();
     },
     true},
    {"close streams and events", nothing,
     [](World& w) {
       CopyStream stream(w.driver, mib);
       Event event(w.driver);
     },
     true},
};

// After a failure: whatever model is left comes and goes as ever, and has what it should.
void check_usable(World& world) {
  if (!world.pool) return;
  for (const OwnerId owner : {7, 8}) world.pool->give_back_all(owner);
  for (auto* model : {&world.a, &world.b}) {
    if (!*model) continue;
    if ((*model)->memory.torn()) (*model)->swap_out();
    if ((*model)->memory.resident()) {
      (*model)->check_content();
      (*model)->swap_out();
    }
  }
  // A model that was closed while resident, or that ran out of memory on the way, gave its pages
  // up without the pool knowing.
  for (const OwnerId owner : {1, 2}) world.pool->give_back_all(owner);
  for (auto* model : {&world.a, &world.b}) {
    if (!*model) continue;
    CHECK_EQ(world.pool->free_pages(), world_pages);
    (*model)->swap_in();
    (*model)->check_content();
    (*model)->write(900);
    (*model)->swap_out();
    (*model)->swap_in();
    (*model)->check_content();
    (*model)->swap_out();
  }
}

struct Totals {
  std::uint64_t injections = 0, failures = 0;
  std::map<DriverCall, std::uint64_t> hits;
};

// One run with one failure planned; whether there was one.
template <typename Arm, typename Disarm>
bool attempt(const Scenario& scenario, Totals& totals, const char* kind, Arm arm, Disarm disarm) {
  std::uint64_t injected = 0;
  try {
    std::shared_ptr<Ledger> ledger;
    std::map<DriverCall, std::uint64_t> refused;
    {
      World world;
      scenario.prepare(world);
      ledger = world.ledger;
      bool failed = false;
      arm(world);
      try {
        scenario.run(world);
      } catch (const std::exception&) {
        failed = true;
      }
      injected = disarm(world);
#define COLLECT(name, params, args, needs_context) \
  refused[DriverCall::name] = world.plan->injected(DriverCall::name);
      GPUPOOL_DRIVER_CALLS(COLLECT)
#undef COLLECT
      totals.injections += injected;
      for (const auto& [call, count] : refused) totals.hits[call] += count;
      if (injected == 0) CHECK(!failed);
      check_usable(world);
    }
    // Zero, but for what the driver itself refused to take back.
    const Holdings held = ledger->held();
    if (scenario.closes) {
      CHECK_EQ(held.registrations, refused[DriverCall::host_unregister]);
      CHECK_EQ(held.streams, refused[DriverCall::stream_destroy]);
      CHECK_EQ(held.events, refused[DriverCall::event_destroy]);
      CHECK_EQ(held.pages, refused[DriverCall::page_release]);
      const auto unmaps = refused[DriverCall::unmap];
      if (unmaps == 0) CHECK_EQ(held.mappings, 0);
      CHECK(held.reservations >= refused[DriverCall::address_free]);
      CHECK(held.reservations <= refused[DriverCall::address_free] + unmaps);
    } else {
      CHECK(held == Holdings{});
    }
  } catch (const std::exception& error) {
    ++totals.failures;
    std::printf("FAILED  %s, %s: %s\n", scenario.name, kind, error.what());
  }
  return injected > 0;
}

void run(const Scenario& scenario, Totals& totals) {
  const std::uint64_t before = totals.injections;
  for (const bool persistent : {false, true}) {
    for (const Status code : {Status::unknown, Status::out_of_memory, Status::not_supported}) {
      for (std::uint64_t nth = 1;; ++nth) {
        const std::string kind = "call " + std::to_string(nth) + " answers " +
                                 std::to_string(static_cast<int>(code)) +
                                 (persistent ? " from then on" : " once");
        const bool more = attempt(
            scenario, totals, kind.c_str(),
            [&](World& world) { world.plan->arm(nth, code, persistent, scenario.closes); },
            [](World& world) {
              world.plan->disarm();
              return world.plan->injected();
            });
        if (!more) break;
      }
    }
    for (std::uint64_t nth = 1;; ++nth) {
      const std::string kind =
          "allocation " + std::to_string(nth) + " fails" + (persistent ? " from then on" : " once");
      const bool more = attempt(
          scenario, totals, kind.c_str(), [&](World&) { allocations = {nth, persistent, 0}; },
          [](World&) {
            allocations.nth = 0;
            return allocations.injected;
          });
      if (!more) break;
    }
  }
  std::printf("%6llu  %s\n", static_cast<unsigned long long>(totals.injections - before),
              scenario.name);
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
  Totals totals;
  const std::string only = count > 1 ? arguments[1] : "";
  for (const Scenario& scenario : scenarios) {
    if (only.empty() || only == scenario.name) run(scenario, totals);
  }
  if (only.empty()) {
    int missed = 0;
#define MISSED(name, params, args, needs_context)         \
  if (totals.hits[DriverCall::name] == 0) {               \
    ++missed;                                             \
    std::printf("FAILED  no scenario fails %s\n", #name); \
  }
    GPUPOOL_DRIVER_CALLS(MISSED)
#undef MISSED
    std::printf("scenarios=%zu driver_calls_hit=%zu missed=%d\n", std::size(scenarios),
                totals.hits.size() - static_cast<std::size_t>(missed), missed);
    totals.failures += static_cast<std::uint64_t>(missed);
  }
  std::printf("injections=%llu failures=%llu\n", static_cast<unsigned long long>(totals.injections),
              static_cast<unsigned long long>(totals.failures));
  return totals.failures == 0 ? 0 : 1;
}

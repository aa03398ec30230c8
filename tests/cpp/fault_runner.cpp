#include "fault_runner.h"

#include <array>
#include <cstdio>
#include <cstdlib>

#include "failing_new.h"

namespace gpupool {
namespace {

// While nobody has anything, no page that could be granted is mapped, at whatever address.
void check_unmapped(World& world) {
  const PoolStatistics now = world.pool->statistics();
  const std::vector<PagePtr> pages = world.acquire(9, now.clean + now.dirty);
  for (const PagePtr& page : pages) CHECK(!world.ledger->mapped(page->handle()));
  world.pool->give_back_all(9);
}

// After a failure: whatever model is left comes and goes as ever, and has what it should.
void check_usable(World& world) {
  if (!world.pool) return;
  if (world.scrubber) world.scrubber->scrub_free();  // which takes back what was withheld
  for (const OwnerId owner : {7, 8}) world.pool->give_back_all(owner);
  for (auto* model : {&world.a, &world.b}) {
    if (!*model) continue;
    if ((*model)->memory.torn()) (*model)->swap_out();
    if ((*model)->memory.warm_pages() > 0) (*model)->swap_in();  // which has what stayed
    if ((*model)->memory.resident()) {
      (*model)->check_content();
      (*model)->swap_out();
    }
  }
  // A model that was closed while resident, or that ran out of memory on the way, gave its pages
  // up without the pool knowing.
  for (const OwnerId owner : {1, 2}) world.pool->give_back_all(owner);
  check_unmapped(world);
  for (auto* model : {&world.a, &world.b}) {
    if (!*model) continue;
    // But for those that a model that closed could not wait for, or not unmap.
    CHECK_EQ(world.pool->free_pages() + world.pool->statistics().withheld, world_pages);
    (*model)->swap_in();
    (*model)->check_content();
    (*model)->write(900);
    (*model)->swap_out();
    (*model)->swap_in();
    (*model)->check_content();
    (*model)->swap_out();
  }
}

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
      } catch (const check::Failure&) {
        throw;
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
      // Where waits were refused work may go on into what is looked at next.
      if (refused[DriverCall::stream_synchronize] + refused[DriverCall::context_synchronize] > 0) {
        CHECK_OK(world.ledger->context_synchronize());
      }
      scenario.after(world, failed);
      check_usable(world);
    }
    // Zero, but for what the driver itself refused to take back.
    const Holdings held = ledger->held();
    // What ends in use while no wait is answered keeps all it has.
    const auto waits = refused[DriverCall::context_synchronize] + ledger->refused();
    const bool in_use =
        held.mappings > 0 || held.registrations > refused[DriverCall::host_unregister];
    const bool kept = scenario.ends && in_use && waits >= scenario.ends->waits;
    const Ended stays = kept ? *scenario.ends : Ended{};
    const auto unmaps = scenario.ends ? refused[DriverCall::unmap] : 0;
    CHECK_EQ(held.registrations, refused[DriverCall::host_unregister] + stays.images);
    CHECK_EQ(held.streams, refused[DriverCall::stream_destroy]);
    CHECK_EQ(held.events, refused[DriverCall::event_destroy]);
    CHECK_EQ(held.pages, refused[DriverCall::page_release]);
    if (unmaps == 0 && !kept) CHECK_EQ(held.mappings, 0);
    CHECK(held.reservations >= refused[DriverCall::address_free] + stays.addresses);
    CHECK(held.reservations <= refused[DriverCall::address_free] + stays.addresses + unmaps);
  } catch (const std::exception& error) {
    ++totals.failures;
    std::printf("FAILED  %s, %s: %s\n", scenario.name, kind, error.what());
  }
  return injected > 0;
}

}  // namespace

void run_failing(const Scenario& scenario, DriverCall call, Totals& totals) {
  const std::string kind =
      "the first " + std::string(driver_call_names[static_cast<std::size_t>(call)]) + " fails";
  attempt(
      scenario, totals, kind.c_str(),
      [&](World& world) { world.plan->arm_call(call, 1, 1, Status::unknown); },
      [](World& world) {
        world.plan->disarm();
        return world.plan->injected();
      });
}

void run(const Scenario& scenario, Totals& totals) {
  constexpr std::array codes{Status::unknown, Status::out_of_memory, Status::not_supported};
  // In a third of the time: each call fails with one of them, in turn, and a third of allocations.
  const bool in_turn = std::getenv("GPUPOOL_FAULTS_IN_TURN") != nullptr;
  const std::uint64_t before = totals.injections;
  for (const bool persistent : {false, true}) {
    for (std::size_t which = 0; which < (in_turn ? 1 : codes.size()); ++which) {
      for (std::uint64_t nth = 1;; ++nth) {
        const Status code = codes[(in_turn ? nth : which) % codes.size()];
        const std::string kind = "call " + std::to_string(nth) + " answers " +
                                 std::to_string(static_cast<int>(code)) +
                                 (persistent ? " from then on" : " once");
        const bool more = attempt(
            scenario, totals, kind.c_str(),
            [&](World& world) { world.plan->arm(nth, code, persistent, true); },
            [](World& world) {
              world.plan->disarm();
              return world.plan->injected();
            });
        if (!more) break;
      }
    }
    const std::uint64_t step = in_turn ? 3 : 1;
    for (std::uint64_t nth = persistent ? 1 : step;; nth += step) {
      const std::string kind =
          "allocation " + std::to_string(nth) + " fails" + (persistent ? " from then on" : " once");
      const bool more = attempt(
          scenario, totals, kind.c_str(), [&](World&) { fail_allocations(nth, persistent); },
          [](World&) {
            bad_alloc_at = 0;
            return bad_allocs;
          });
      if (!more) break;
    }
  }
  std::printf("%6llu  %s\n", static_cast<unsigned long long>(totals.injections - before),
              scenario.name);
  std::fflush(stdout);
}

}  // namespace gpupool

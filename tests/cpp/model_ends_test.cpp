// What a model leaves as it ends: nothing, but what the driver does not let go. One program with
// model_memory_test.cpp.
#include "model_bench.h"

using namespace gpupool;

TEST(the_end_of_a_resident_model_gives_its_pages_up) {
  Machine machine(8);
  RegionPtr kept;
  std::vector<std::weak_ptr<const Page>> pages;
  {
    ModelMemory memory(machine.faulty, page_bytes, mib);
    kept = memory.add_region(Tag::weights, page_bytes, -1);
    auto fresh = Page::create(machine.faulty, page_bytes);
    pages.push_back(fresh);
    memory.swap_in({std::move(fresh)});
    CHECK(!pages[0].expired());
  }
  CHECK(pages[0].expired());
  // A tensor may still hold the region: its addresses are its own until it goes.
  CHECK_EQ(machine.bench->unmap(kept->address(), page_bytes), Status::invalid_value);
  const DevicePtr address = kept->address();
  kept.reset();
  CHECK_EQ(machine.bench->address_free(address, page_bytes), Status::invalid_value);
}

// Its tensors still read and write there.
TEST(pages_that_a_model_cannot_unmap_are_nobody_elses) {
  for (const std::uint64_t refusals : {std::uint64_t{1}, FaultPlan::every_call}) {
    Machine machine(3);
    RegionPtr kept;
    {
      ModelMemory memory(machine.faulty, page_bytes, mib);
      kept = memory.add_region(Tag::kv_cache, 2 * page_bytes, -1);
      memory.swap_in(machine.acquire(1, 2));
      machine.plan->arm_call(DriverCall::unmap, 1, refusals, Status::unknown);
    }
    machine.plan->disarm();
    machine.pool.give_back_all(1);
    const bool stays = refusals > 1;
    CHECK_EQ(machine.pool.statistics().withheld, stays ? 2 : 0);
    if (!stays) continue;
    machine.bench.write(kept->address(), pattern(1, 2 * page_bytes));
    machine.soil(2);
    CHECK(machine.bench.read(kept->address(), 2 * page_bytes) == pattern(1, 2 * page_bytes));
  }
}

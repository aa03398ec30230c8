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

TEST(the_image_of_a_removed_region_goes_while_the_region_is_held) {
  Machine machine(8);
  ModelMemory memory(machine.faulty, page_bytes, mib);
  const RegionPtr kept = memory.add_region(Tag::weights, 5000, -1);
  const RegionPtr other = memory.add_region(Tag::runtime, 100, -1);
  CHECK_EQ(memory.take_gone_image_bytes(), 0);
  std::byte* image = kept->image();
  memory.remove_region(*kept);
  CHECK_EQ(machine.bench->host_unregister(image), Status::host_memory_not_registered);
  CHECK(kept->image() == nullptr && kept->image_bytes() == 0 && other->image() != nullptr);
  CHECK_EQ(memory.take_gone_image_bytes(), 8192);
  CHECK_EQ(memory.take_gone_image_bytes(), 0);
  const RegionPtr workspace = memory.add_region(Tag::workspace, 100, std::nullopt);
  memory.remove_region(*workspace);
  CHECK_EQ(memory.take_gone_image_bytes(), 0);
}

TEST(an_image_that_somebody_shares_goes_with_the_last_who_does) {
  for (const bool closes : {false, true}) {
    Machine machine(8);
    ModelMemory memory(machine.faulty, page_bytes, mib);
    const RegionPtr region = memory.add_region(Tag::weights, 5000, -1);
    std::shared_ptr<HostMemory> shared = region->share_image();
    if (closes) {
      memory.close();
    } else {
      memory.remove_region(*region);
    }
    CHECK_EQ(memory.take_gone_image_bytes(), 0);
    shared->data()[4999] = std::byte{1};
    std::byte* image = shared->data();
    shared.reset();
    CHECK_EQ(machine.bench->host_unregister(image), Status::host_memory_not_registered);
    CHECK_EQ(memory.take_gone_image_bytes(), 8192);
  }
}

TEST(an_image_that_the_driver_does_not_let_go_never_counts_as_gone) {
  Machine machine(8);
  ModelMemory memory(machine.faulty, page_bytes, mib);
  const RegionPtr stays = memory.add_region(Tag::weights, 5000, -1);
  const RegionPtr goes = memory.add_region(Tag::weights, 100, -1);
  machine.plan->arm_call(DriverCall::host_unregister, 1, 1, Status::unknown);
  memory.close();
  CHECK_EQ(memory.take_gone_image_bytes(), 4096);
}

TEST(a_closed_model_is_refused_what_would_change_it) {
  Machine machine(8);
  Subject a(machine, 1);
  Region& cache = a.add(Tag::kv_cache, page_bytes);
  a.swap_in();
  CHECK_THROWS(UsageError, a.memory.close());
  CHECK(cache.image() != nullptr);
  a.swap_out();
  a.memory.close();
  a.memory.close();
  CHECK_EQ(a.memory.take_gone_image_bytes(), page_bytes);
  CHECK_THROWS(UsageError, a.swap_in());
  CHECK_THROWS(UsageError, a.memory.swap_out());
  CHECK_THROWS(UsageError, a.memory.resize(cache, 100, {}, 0, -1));
  CHECK_THROWS(UsageError, a.memory.adopt_image(cache));
  CHECK_THROWS(UsageError, a.add(Tag::workspace, 100));
  CHECK_THROWS(UsageError, a.memory.remove_region(cache));
  a.check_out();
}

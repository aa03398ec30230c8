// Residency of a model: content survives, pages are scrubbed, only what is marked is copied.
#include <thread>

#include "model_bench.h"

using namespace gpupool;

TEST(content_survives_on_other_pages) {
  Machine machine(16);
  Subject a(machine, 1);
  a.add_all();
  a.swap_in();
  a.check_content();  // all zero at first
  a.write_all(100);
  for (int round = 0; round < 4; ++round) {
    const std::uint64_t seed = 200 + 10 * static_cast<std::uint64_t>(round);
    std::vector<DevicePtr> addresses;
    for (const RegionPtr& region : a.regions) addresses.push_back(region->address());
    a.swap_out();
    a.check_out();
    machine.soil(0xEE);
    const auto blocker = machine.acquire(50 + static_cast<OwnerId>(round), 1);  // shifts the pages
    a.swap_in();
    a.check_content();
    for (std::size_t i = 0; i < a.regions.size(); ++i) {
      CHECK_EQ(a.regions[i]->address(), addresses[i]);
    }
    a.write_all(seed);
    a.check_content();
  }
}

TEST(a_page_is_scrubbed_before_its_next_owner_reads_it) {
  Machine machine(7);
  Subject secretive(machine, 1), curious(machine, 2);
  secretive.add_all();
  curious.add_all();
  secretive.swap_in();
  secretive.write_all(1);
  secretive.swap_out();
  machine.soil(0x53);  // and whatever else is left in the pages
  curious.swap_in();
  curious.check_content();  // zeros, to the last byte of the last page
}

TEST(a_swap_out_waits_for_the_kernels_of_others) {
  Machine machine(40);
  Subject a(machine, 1);
  const std::size_t bytes = 32 * page_bytes;
  a.add(Tag::weights, bytes);
  a.swap_in();
  // Launched on a stream that the model knows nothing of, and far from done when it leaves.
  for (int value = 1; value <= 20; ++value) {
    CHECK_OK(machine.bench->fill(a.regions[0]->address(), static_cast<std::uint8_t>(value), bytes,
                                 machine.bench.stream()));
  }
  a.swap_out();
  a.expected[0].assign(bytes, 20);
  a.swap_in();
  a.check_content();
}

TEST(weights_are_saved_once_and_then_where_marked) {
  Machine machine(8);
  Subject a(machine, 1);
  const std::size_t bytes = 2 * page_bytes;
  a.add(Tag::weights, bytes);
  CHECK_EQ(a.swap_in().copied_bytes, 0);
  a.write(0, 1, {0, bytes});
  CHECK_EQ(a.swap_out().copied_bytes, bytes);
  CHECK_EQ(a.swap_in().copied_bytes, bytes);
  CHECK_EQ(a.swap_out().copied_bytes, 0);  // nothing changed, nothing copied
  a.swap_in();
  a.write(0, 2, {100, 300});
  a.write(0, 3, {200, 400});
  CHECK_EQ(a.swap_out().copied_bytes, 300);
  a.swap_in();
  a.check_content();
}

TEST(kv_is_saved_where_marked_and_zero_elsewhere) {
  Machine machine(8);
  Subject a(machine, 1);
  a.add(Tag::kv_cache, 2 * page_bytes);
  a.swap_in();
  a.write(0, 1, {4096, 8192});
  // Written but not marked: nobody said that it is worth keeping.
  machine.bench.write(a.regions[0]->address() + page_bytes, pattern(2, 4096));
  CHECK_EQ(a.swap_out().copied_bytes, 4096);
  machine.soil(0x77);
  const SwapReport report = a.swap_in();
  CHECK_EQ(report.copied_bytes, 4096);
  CHECK_EQ(report.filled_bytes, 2 * page_bytes - 4096);
  CHECK_EQ(report.pages, 2);
  a.check_content();
  CHECK_EQ(a.memory.saved_bytes(*a.regions[0]), 4096);
}

TEST(runtime_is_saved_always_and_a_workspace_never) {
  Machine machine(8);
  Subject a(machine, 1);
  a.add(Tag::runtime, 5000);
  a.add(Tag::cudagraph, 6000);
  a.add(Tag::workspace, page_bytes);
  a.swap_in();
  for (int round = 0; round < 3; ++round) {
    a.write_all(static_cast<std::uint64_t>(round));
    CHECK_EQ(a.swap_out().copied_bytes, 11000);
    machine.soil(0x99);
    CHECK_EQ(a.swap_in().copied_bytes, 11000);
    a.check_content();
  }
}

TEST(an_adopted_image_is_the_truth) {
  Machine machine(8);
  Subject a(machine, 1);
  Region& weights = a.add(Tag::weights, page_bytes + 10);
  a.expected[0] = pattern(9, weights.bytes());
  std::copy(a.expected[0].begin(), a.expected[0].end(),
            reinterpret_cast<std::uint8_t*>(weights.image()));
  a.memory.adopt_image(weights);
  a.swap_in();
  a.check_content();
  CHECK_EQ(a.swap_out().copied_bytes, 0);
}

TEST(calls_out_of_turn_are_refused_and_change_nothing) {
  Machine machine(16);
  Subject a(machine, 1);
  a.add_all();
  Region& weights = *a.regions[0];
  Region& workspace = *a.regions[3];
  CHECK_THROWS(UsageError, a.memory.swap_out());
  CHECK_THROWS(UsageError, a.memory.mark_written(weights, {{0, 1}}));
  CHECK_THROWS(UsageError, a.memory.adopt_image(workspace));
  CHECK_THROWS(UsageError, a.memory.add_region(Tag::weights, 0, -1));
  CHECK_THROWS(UsageError, a.memory.swap_in({}));
  CHECK_THROWS(UsageError, a.memory.swap_in(std::vector<PagePtr>(a.memory.pages_needed())));
  a.swap_in();
  CHECK_THROWS(UsageError, a.memory.swap_in(machine.acquire(2, a.memory.pages_needed())));
  CHECK_THROWS(UsageError, a.memory.add_region(Tag::weights, 10, -1));
  CHECK_THROWS(UsageError, a.memory.adopt_image(weights));
  CHECK_THROWS(UsageError, a.memory.mark_written(workspace, {{0, 1}}));
  CHECK_THROWS(UsageError, a.memory.mark_written(weights, {{0, 10}, {0, weights.bytes() + 1}}));
  CHECK_THROWS(UsageError, a.memory.mark_written(weights, {{2, 1}}));
  a.check_content();
}

TEST(pages_of_another_size_are_refused) {
  Machine machine(4);
  Subject a(machine, 1);
  a.add(Tag::weights, 100);
  CHECK_THROWS(UsageError, a.memory.swap_in({Page::create(machine.faulty, 2 * page_bytes)}));
  a.check_out();
}

TEST(pages_too_small_too_few_or_too_many_are_refused) {
  Machine machine(6);
  ModelMemory memory(machine.faulty, 2 * page_bytes, mib);
  const RegionPtr region = memory.add_region(Tag::weights, 3 * page_bytes, -1);
  const auto pages = [&](std::size_t count, std::size_t bytes) {
    std::vector<PagePtr> made;
    for (std::size_t i = 0; i < count; ++i) made.push_back(Page::create(machine.faulty, bytes));
    return made;
  };
  CHECK_THROWS(UsageError, memory.swap_in(pages(2, page_bytes)));
  CHECK_THROWS(UsageError, memory.swap_in(pages(1, 2 * page_bytes)));
  CHECK_THROWS(UsageError, memory.swap_in(pages(3, 2 * page_bytes)));
  CHECK_EQ(memory.swap_in(pages(2, 2 * page_bytes)).pages, 2);
}

TEST(a_region_of_another_model_is_refused) {
  Machine machine(4);
  Subject a(machine, 1), b(machine, 2);
  a.add(Tag::kv_cache, page_bytes);
  Region& other = b.add(Tag::kv_cache, page_bytes);
  b.swap_in();
  b.write(0, 1, {0, page_bytes});
  CHECK_THROWS(UsageError, a.memory.adopt_image(other));
  CHECK_THROWS(UsageError, a.memory.saved_bytes(other));
  CHECK_THROWS(UsageError, a.memory.mapped_pages(other));
  CHECK_THROWS(UsageError, a.memory.missing_image_bytes(other, 1));
  b.swap_out();
  a.swap_in();
  CHECK_THROWS(UsageError, a.memory.mark_written(other, {{0, 1}}));
  b.swap_in();
  b.check_content();
}

TEST(a_page_comes_once_and_from_the_device_of_the_model) {
  Machine machine(4), elsewhere(4);
  Subject a(machine, 1);
  a.add(Tag::kv_cache, 2 * page_bytes);
  auto pages = machine.acquire(1, 3);
  const auto foreign = elsewhere.acquire(1, 1);
  CHECK_THROWS(UsageError, a.memory.swap_in({pages[0], pages[0]}));
  CHECK_THROWS(UsageError, a.memory.swap_in({pages[0], foreign[0]}));
  a.check_out();
  const RegionPtr larger = a.memory.add_region(Tag::workspace, 1, -1, 2 * page_bytes);
  a.memory.swap_in(pages);
  for (const PagePtr& page : pages) {
    CHECK_THROWS(UsageError, a.memory.resize(*larger, page_bytes + 1, {page}, 0, -1));
  }
  CHECK_THROWS(UsageError, a.memory.resize(*larger, page_bytes + 1, foreign, 0, -1));
  a.memory.resize(*larger, page_bytes + 1, machine.acquire(1, 1), 0, -1);
  a.check_content();
}

TEST(a_page_size_the_device_cannot_have_is_refused) {
  CHECK_THROWS(UsageError, ModelMemory(open_test_driver(), 0, mib));
  CHECK_THROWS(UsageError, ModelMemory(open_test_driver(), page_bytes + 1, mib));
  CHECK_THROWS(UsageError, ModelMemory(open_test_driver(), page_bytes, 0));
}

TEST(a_region_too_large_for_anything_is_refused) {
  Machine machine(6);
  Subject a(machine, 1);
  CHECK_THROWS(DriverError, a.memory.add_region(Tag::workspace, ~std::size_t{0}, -1));
  CHECK_THROWS(std::exception, a.memory.add_region(Tag::weights, std::size_t{1} << 60, -1));
  CHECK_EQ(a.memory.pages_needed(), 0);
  a.add_all();
  a.swap_in();
  a.check_content();
}

TEST(clean_pages_go_where_zeros_are_due) {
  Machine machine(8);
  Subject a(machine, 1);
  a.add(Tag::weights, 2 * page_bytes);
  a.add(Tag::kv_cache, 2 * page_bytes);
  a.swap_in();
  a.write(0, 1, {0, 2 * page_bytes});
  a.swap_out();
  machine.soil(0x31);
  // Two of four pages are clean; the weights are overwritten anyway.
  auto pages = machine.acquire(1, 4);
  {
    const auto place = std::make_shared<const Reservation>(machine.bench.driver(), 2 * page_bytes);
    Mapping mapping(machine.bench.driver(), place, {pages[0], pages[1]});
    mapping.map();
    machine.bench.write(place->address(), Bytes(2 * page_bytes, 0));
  }
  CHECK_THROWS(UsageError, a.memory.swap_in(pages, 5));
  const SwapReport report = a.memory.swap_in(pages, 2);
  CHECK_EQ(report.copied_bytes, 2 * page_bytes);
  CHECK_EQ(report.filled_bytes, 0);
  a.check_content();
}

TEST(a_swap_in_is_cancelled_between_chunks) {
  for (const bool at_once : {true, false}) {
    Machine machine(40);
    Subject a(machine, 1);
    a.add(Tag::weights, 32 * page_bytes);
    a.swap_in();
    a.write(0, 1, {0, 32 * page_bytes});
    a.swap_out();
    std::stop_source stop;
    if (at_once) stop.request_stop();
    std::thread canceller([&] { stop.request_stop(); });
    try {
      a.memory.swap_in(machine.acquire(1, 32), 0, stop.get_token());
      CHECK(!at_once);
      a.check_content();  // the request came too late
      a.swap_out();
    } catch (const Cancelled&) {
      machine.pool.give_back_all(1);
    }
    canceller.join();
    a.check_out();
    a.swap_in();
    a.check_content();
  }
}

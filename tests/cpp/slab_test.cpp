// The slab allocator in one thread: against a plain model, with every handle that is none, and with
// every call of its source and every allocation failing.
#include <set>

#include "driver/fault.h"
#include "image/host_slabs.h"
#include "memory/page_slabs.h"
#include "slab_bench.h"

using namespace gpupool;

[[gnu::noinline]] void* operator new(std::size_t bytes) {
  if (bad_alloc_at > 0 && --bad_alloc_at == 0) {
    ++bad_allocs;
    throw std::bad_alloc();
  }
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

constexpr std::size_t slab_bytes = 16384;

struct Scene {
  explicit Scene(SlabLimits limits = {{64, 192, 4096}, 12})
      : source(std::make_shared<HeapSlabs>(slab_bytes)),
        slabs(SlabAllocator::create(source, std::move(limits))) {}
  std::shared_ptr<HeapSlabs> source;
  std::shared_ptr<SlabAllocator> slabs;
};

std::string refusal(SlabAllocator& slabs, BlockHandle handle) {
  std::string first;
  try {
    static_cast<void>(slabs.address_of(handle));
  } catch (const StaleBlock& error) {
    CHECK(handle_of(error.name()) == handle);
    first = error.what();
  }
  try {
    slabs.free(handle);
  } catch (const StaleBlock& error) {
    CHECK(handle_of(error.name()) == handle);
    CHECK_EQ(first, std::string(error.what()));
    return first;
  }
  check::fail(__FILE__, __LINE__, "a block that is not in use was freed");
}

struct Live {
  BlockHandle handle;
  std::size_t shape;
};

// The allocator beside a list of what is in use and what was.
struct Model {
  Model(SlabAllocator& allocator, std::uint64_t seed) : slabs(allocator), random(seed) {}

  std::size_t below(std::size_t n) { return static_cast<std::size_t>(random() % n); }
  bool allocate(std::size_t shape) {
    BlockHandle handle{};
    try {
      handle = slabs.allocate(shape);
    } catch (const OutOfBlocks&) {
      return false;
    }
    CHECK((name_of(handle).generation & 1) == 1);
    stamp(slabs.address_of(handle), slabs.block_bytes(shape), handle);
    live.push_back({handle, shape});
    return true;
  }
  void free(std::size_t i) {
    const Live block = live[i];
    CHECK(stamped(slabs.address_of(block.handle), slabs.block_bytes(block.shape), block.handle));
    slabs.free(block.handle);
    if (dead.size() < 5000) {
      dead.push_back(block.handle);
    } else {
      dead[below(dead.size())] = block.handle;
    }
    live[i] = live.back();
    live.pop_back();
  }
  void check_statistics() {
    const SlabStatistics all = slabs.statistics();
    std::vector<std::size_t> counts(all.shapes.size());
    std::size_t bytes = 0;
    for (const Live& block : live) {
      ++counts[block.shape];
      bytes += slabs.block_bytes(block.shape);
    }
    for (std::size_t shape = 0; shape < counts.size(); ++shape) {
      CHECK_EQ(all.shapes[shape].blocks_live, counts[shape]);
    }
    CHECK_EQ(all.bytes_live, bytes);
    CHECK_EQ(all.slabs, all.slabs_made - all.slabs_returned);
  }

  SlabAllocator& slabs;
  std::mt19937_64 random;
  std::vector<Live> live;
  std::vector<BlockHandle> dead;
};

void run_model(SlabLimits limits, std::uint64_t seed, int steps) {
  Scene scene(std::move(limits));
  Model model(*scene.slabs, seed);
  const std::size_t shapes = scene.slabs->statistics().shapes.size();
  std::size_t allocating = 5;  // of 10
  for (int step = 0; step < steps; ++step) {
    if (step % 2000 == 0) allocating = 2 + model.below(7);
    const std::size_t kind = model.below(100);
    if (kind < 3) {
      if (model.dead.empty()) continue;
      const BlockHandle stale = model.dead[model.below(model.dead.size())];
      CHECK(refusal(*scene.slabs, stale).find("was freed already") != std::string::npos);
    } else if (kind == 3) {  // bits that are no handle, but look much like one
      const BlockName near{static_cast<std::uint32_t>(model.below(40)),
                           static_cast<std::uint32_t>(model.below(300)),
                           static_cast<std::uint32_t>(model.below(1u << 20)) + (1u << 20)};
      CHECK(!refusal(*scene.slabs, handle_of(near)).empty());
    } else if (model.live.empty() || model.below(10) < allocating) {
      const std::size_t shape = model.below(shapes);
      if (!model.allocate(shape)) {  // then nothing was to be had
        const SlabStatistics all = scene.slabs->statistics();
        CHECK_EQ(all.shapes[shape].blocks, all.shapes[shape].blocks_live);
        CHECK_EQ(all.slabs, 12);
      }
    } else {
      model.free(model.below(model.live.size()));
    }
    if (step % 1000 == 0) {
      model.check_statistics();
      CHECK_EQ(scene.source->runs(), scene.slabs->statistics().slabs);
    }
    if (step % 5000 == 2500) scene.slabs->trim();
  }
  while (!model.live.empty()) model.free(model.live.size() - 1);
  model.check_statistics();
  scene.slabs->trim();
  CHECK_EQ(scene.source->runs(), 0);
}

}  // namespace

TEST(random_operations_agree_with_a_model) {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    try {
      SlabLimits limits{{64, 192, 4096}, 12};
      limits.thread_owned = seed % 5 != 4;
      run_model(limits, seed, 100'000);
    } catch (const check::Failure& failure) {
      throw check::Failure("seed " + std::to_string(seed) + ": " + failure.what());
    }
  }
}

TEST(limits_are_checked_at_the_door) {
  CHECK_THROWS(UsageError, Scene({{}, 1}));
  CHECK_THROWS(UsageError, Scene({std::vector<std::size_t>(65, 64), 1}));
  CHECK_THROWS(UsageError, Scene({{0}, 1}));
  CHECK_THROWS(UsageError, Scene({{slab_bytes + 1}, 1}));
  CHECK_THROWS(UsageError, Scene({{64}, 0}));
  CHECK_THROWS(UsageError, Scene({{64}, 65537}));
  CHECK_THROWS(UsageError, Scene({{64, 128}, 32769}));
  CHECK_THROWS(UsageError, Scene({{64}, 1, 0}));
  CHECK_THROWS(UsageError, Scene({{64}, 1, 0x80000000}));
  CHECK_THROWS(UsageError, SlabAllocator::create(std::make_shared<HeapSlabs>(65537), {{1}, 1}));
  Scene scene({{192, 64, 4096}, 1});
  CHECK_THROWS(UsageError, scene.slabs->allocate(3));
  CHECK_THROWS(UsageError, scene.slabs->block_bytes(3));
  CHECK_EQ(scene.slabs->shape_for(1), 1);
  CHECK_EQ(scene.slabs->shape_for(65), 0);
  CHECK_EQ(scene.slabs->shape_for(4096), 2);
  CHECK_THROWS(UsageError, scene.slabs->shape_for(4097));
  CHECK_EQ(scene.source->runs(), 0);
}

TEST(a_refusal_names_the_block) {
  Scene scene({{4096}, 1});
  const BlockHandle first = scene.slabs->allocate(0);
  const std::string name = "block 0 of slab 0 (generation 1) ";
  scene.slabs->free(first);
  CHECK_EQ(refusal(*scene.slabs, first), name + "was freed already");
  const BlockHandle second = scene.slabs->allocate(0);
  CHECK(name_of(second).block == 0 && name_of(second).generation == 3);
  CHECK_EQ(refusal(*scene.slabs, first), name + "was freed already, and handed out again since");
  for (const BlockName none : {BlockName{0, 0, 0},
                               {0, 0, 2},
                               {0, 0, 4},
                               {0, 0, 5},
                               {0, 1, 1},
                               {0, 4, 1},
                               {1, 0, 1},
                               {65535, 65535, 0xFFFFFFFF}}) {
    CHECK(refusal(*scene.slabs, handle_of(none)).find("never existed") != std::string::npos);
  }
  scene.slabs->free(second);
  scene.slabs->trim();
  CHECK_EQ(refusal(*scene.slabs, second),
           std::string("block 0 of slab 0 (generation 3) was freed already"));
}

TEST(generations_go_on_in_the_next_slab) {
  Scene scene({{slab_bytes}, 1});
  std::set<BlockHandle> all;
  for (int i = 0; i < 100; ++i) {
    const BlockHandle handle = scene.slabs->allocate(0);
    CHECK(all.insert(handle).second);
    scene.slabs->free(handle);
    scene.slabs->trim();
    CHECK_EQ(scene.source->runs(), 0);
  }
}

TEST(a_block_used_up_is_never_handed_out_again) {
  for (const bool owned : {true, false}) {
    Scene scene({{4096}, 2, 3, owned});
    std::set<BlockHandle> all;
    for (int i = 0; i < 24; ++i) {  // 2 slabs of 4 blocks, 3 uses each
      const BlockHandle handle = scene.slabs->allocate(0);
      CHECK(all.insert(handle).second);
      scene.slabs->free(handle);
      CHECK_THROWS(StaleBlock, scene.slabs->free(handle));
    }
    CHECK_THROWS(OutOfBlocks, scene.slabs->allocate(0));
    CHECK_EQ(scene.source->runs(), 0);
  }
}

TEST(empty_slabs_go_back_but_one) {
  for (const bool owned : {true, false}) {
    Scene scene({{4096}, 8, 0x7FFFFFFF, owned});
    std::vector<BlockHandle> all;
    for (int i = 0; i < 32; ++i) all.push_back(scene.slabs->allocate(0));
    CHECK_EQ(scene.source->runs(), 8);
    CHECK_THROWS(OutOfBlocks, scene.slabs->allocate(0));
    CHECK_EQ(scene.slabs->statistics().fragmentation, 0.0);
    scene.slabs->free(all.back());
    CHECK_EQ(scene.slabs->statistics().fragmentation, 1.0 / 32);
    all.back() = scene.slabs->allocate(0);
    for (const BlockHandle handle : all) scene.slabs->free(handle);
    CHECK(scene.source->runs() <= 2);
    scene.slabs->trim();
    CHECK_EQ(scene.source->runs(), 0);
    CHECK_EQ(scene.slabs->statistics().slabs_returned, 8);
  }
}

TEST(the_last_block_back_and_forth_makes_no_slab) {
  for (const bool owned : {true, false}) {
    Scene scene({{4096}, 8, 0x7FFFFFFF, owned});
    for (int i = 0; i < 4; ++i) static_cast<void>(scene.slabs->allocate(0));
    for (int i = 0; i < 100; ++i) scene.slabs->free(scene.slabs->allocate(0));
    CHECK_EQ(scene.slabs->statistics().slabs_made, 2);
  }
}

TEST(an_empty_slab_of_one_shape_makes_room_for_another) {
  Scene scene({{64, 4096}, 1});
  scene.slabs->free(scene.slabs->allocate(0));
  const BlockHandle other = scene.slabs->allocate(1);
  CHECK_THROWS(OutOfBlocks, scene.slabs->allocate(0));
  scene.slabs->free(other);
  scene.slabs->free(scene.slabs->allocate(0));
}

TEST(an_allocator_gives_back_what_is_in_use) {
  Scene scene;
  for (int i = 0; i < 300; ++i) static_cast<void>(scene.slabs->allocate(1));
  CHECK_EQ(scene.source->runs(), 4);
  scene.slabs.reset();
  CHECK_EQ(scene.source->runs(), 0);
}

// A fixed piece of work with its n-th call of the source, or its n-th allocation, failing; the
// model says after each failure that nothing was lost.
template <typename Arm, typename Failed>
void for_every_fault(Arm arm, Failed failed) {
  for (std::uint64_t nth = 1;; ++nth) {
    CHECK(nth < 2000);
    Scene scene({{1024, 4096}, 6});
    Model model(*scene.slabs, 1);
    model.live.reserve(400);
    model.dead.reserve(400);
    arm(*scene.source, nth);
    for (int step = 0; step < 400; ++step) {
      const std::size_t before = model.live.size();
      const std::size_t runs_before = scene.source->runs();
      try {
        if (step % 97 == 50) {
          scene.slabs->trim();
        } else if (before > 0 && model.below(100) < (step / 100 % 2 == 0 ? 30 : 70)) {
          model.free(model.below(before));
        } else {
          static_cast<void>(model.allocate(model.below(2)));
        }
      } catch (const SourceFault&) {
        CHECK(scene.source->runs() <= runs_before);
        CHECK_EQ(model.live.size(), before);
      } catch (const std::bad_alloc&) {
        CHECK_EQ(model.live.size(), before);
      }
    }
    const bool met = failed(*scene.source);
    model.check_statistics();
    while (!model.live.empty()) model.free(0);
    scene.slabs->trim();
    CHECK_EQ(scene.source->runs(), 0);
    if (!met) break;
  }
}

TEST(every_call_of_the_source_fails) {
  for (const bool persistent : {false, true}) {
    for_every_fault(
        [&](HeapSlabs& source, std::uint64_t nth) {
          source.fail_at = nth;
          source.persistent = persistent;
        },
        [](HeapSlabs& source) {
          source.fail_at = 0;
          return source.failed > 0;
        });
  }
}

TEST(every_allocation_fails) {
  for_every_fault(
      [](HeapSlabs&, std::uint64_t nth) {
        bad_allocs = 0;
        bad_alloc_at = nth;
      },
      [](HeapSlabs&) {
        bad_alloc_at = 0;
        return bad_allocs > 0;
      });
}

TEST(making_an_allocator_fails_at_every_allocation) {
  for (std::uint64_t nth = 1;; ++nth) {
    const auto source = std::make_shared<HeapSlabs>(slab_bytes);
    SlabLimits limits{{64, 128}, 4};
    bad_allocs = 0;
    bad_alloc_at = nth;
    try {
      const auto slabs = SlabAllocator::create(source, std::move(limits));
    } catch (const std::bad_alloc&) {
    }
    bad_alloc_at = 0;
    CHECK_EQ(source->runs(), 0);
    if (bad_allocs == 0) break;
  }
}

TEST(a_source_without_memory_is_what_comes_out) {
  Scene scene({{4096, 64}, 8});
  scene.source->runs_max = 1;
  std::vector<BlockHandle> all;
  for (int i = 0; i < 4; ++i) all.push_back(scene.slabs->allocate(0));
  CHECK_THROWS(SourceFault, scene.slabs->allocate(0));
  CHECK_THROWS(SourceFault, scene.slabs->allocate(1));
  scene.slabs->free(all[2]);
  CHECK_THROWS(SourceFault, scene.slabs->allocate(1));
  all[2] = scene.slabs->allocate(0);
  for (const BlockHandle handle : all) scene.slabs->free(handle);
  scene.slabs->free(scene.slabs->allocate(1));  // the empty slab went back for it
}

namespace {

constexpr OwnerId owner = 7;

// Blocks out and in over slabs of the given kind, with its n-th driver call failing.
template <typename Make>
void for_every_driver_fault(Make make) {
  for (const bool persistent : {false, true}) {
    for (std::uint64_t nth = 1;; ++nth) {
      CHECK(nth < 200);
      const auto plan = std::make_shared<FaultPlan>();
      const DriverPtr driver = with_faults(open_host_driver(), plan);
      const auto pool = std::make_shared<PagePool>(driver, 6 * page_bytes, page_bytes);
      const auto slabs = SlabAllocator::create(make(driver, pool), {{page_bytes / 2}, 3});
      plan->arm(nth, Status::unknown, persistent);
      std::vector<BlockHandle> live;
      for (int i = 0; i < 16; ++i) {
        try {
          live.push_back(slabs->allocate(0));
        } catch (const DriverError&) {
        } catch (const OutOfBlocks&) {
        }
      }
      for (const BlockHandle handle : live) slabs->free(handle);
      try {
        slabs->trim();
      } catch (const DriverError&) {
      }
      const bool met = plan->injected() > 0;
      plan->disarm();
      const BlockHandle last = slabs->allocate(0);
      CHECK(slabs->address_of(last) != 0);
      slabs->free(last);
      slabs->trim();
      CHECK_EQ(slabs->statistics().slabs, 0);
      CHECK(pool->owned(owner).empty());
      if (!met) break;
    }
  }
}

}  // namespace

TEST(slabs_of_device_pages_survive_every_driver_fault) {
  for_every_driver_fault([](const DriverPtr& driver, const std::shared_ptr<PagePool>& pool) {
    return std::make_shared<PageSlabs>(driver, pool, owner, 2);
  });
}

TEST(slabs_of_pinned_memory_survive_every_driver_fault) {
  for_every_driver_fault([](const DriverPtr& driver, const std::shared_ptr<PagePool>&) {
    return std::make_shared<HostSlabs>(driver, 2 * page_bytes);
  });
}

TEST(slabs_of_device_pages_lose_none_to_any_failed_allocation) {
  for (std::uint64_t nth = 1;; ++nth) {
    CHECK(nth < 500);
    const DriverPtr driver = open_host_driver();
    const auto pool = std::make_shared<PagePool>(driver, 4 * page_bytes, page_bytes);
    PageSlabs source(driver, pool, owner, 2);
    std::vector<DevicePtr> runs;
    runs.reserve(2);
    bad_allocs = 0;
    bad_alloc_at = nth;
    for (int i = 0; i < 2; ++i) {
      try {
        runs.push_back(source.acquire());
      } catch (const std::bad_alloc&) {
      } catch (const DriverError& error) {  // what the host driver makes of it
        CHECK_EQ(error.status(), Status::out_of_memory);
      }
    }
    for (const DevicePtr run : runs) source.release(run);
    bad_alloc_at = 0;
    const bool met = bad_allocs > 0;
    for (int i = 0; i < 2; ++i) source.release(source.acquire());
    CHECK(pool->owned(owner).empty());
    if (!met) break;
  }
}

TEST(device_blocks_hold_what_is_put_in) {
  Bench bench;
  const auto pool = std::make_shared<PagePool>(bench.driver(), 4 * page_bytes, page_bytes);
  const auto source = std::make_shared<PageSlabs>(bench.driver(), pool, owner, 2);
  const auto slabs = SlabAllocator::create(source, {{page_bytes / 4}, 2});
  std::vector<BlockHandle> all;
  for (std::uint64_t i = 0; i < 16; ++i) {
    all.push_back(slabs->allocate(0));
    bench.write(slabs->address_of(all.back()), pattern(i, page_bytes / 4));
  }
  CHECK_EQ(pool->free_pages(), 0);
  for (std::uint64_t i = 0; i < 16; ++i) {
    CHECK(bench.read(slabs->address_of(all[i]), page_bytes / 4) == pattern(i, page_bytes / 4));
    slabs->free(all[i]);
  }
  slabs->trim();
  CHECK_EQ(pool->free_pages(), 4);
  CHECK_THROWS(UsageError, source->release(1));
  CHECK_THROWS(UsageError, HostSlabs(bench.driver(), mib).release(1));
  CHECK_THROWS(UsageError, PageSlabs(bench.driver(), pool, owner, 0));
}

// Every call of a slab allocator's source fails, and every driver call of a real source, and every
// allocation of memory: nothing is lost, and the next operation works.
#include <functional>

#include "driver/fault.h"
#include "failing_new.h"
#include "image/host_slabs.h"
#include "slab_bench.h"
#include "transfer/page_slabs.h"

using namespace gpupool;

namespace {

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

}  // namespace

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
  for (const bool persistent : {false, true}) {
    for_every_fault([&](HeapSlabs&, std::uint64_t nth) { fail_allocations(nth, persistent); },
                    [](HeapSlabs&) {
                      bad_alloc_at = 0;
                      return bad_allocs > 0;
                    });
  }
}

// As the table of the slabs and what each thread has of it are.
TEST(memory_for_a_cache_line_fails_as_any_does) {
  constexpr std::align_val_t line{64};
  for (const bool array : {false, true}) {
    fail_allocations(1, false);
    const bool failed = check::throws<std::bad_alloc>([&] {
      array ? operator delete[](operator new[](64, line), line)
            : operator delete(operator new(64, line), line);
    });
    bad_alloc_at = 0;
    CHECK(failed);
    CHECK_EQ(bad_allocs, 1);
  }
}

TEST(making_an_allocator_fails_at_every_allocation) {
  for (std::uint64_t nth = 1;; ++nth) {
    const auto source = std::make_shared<HeapSlabs>(slab_bytes);
    SlabLimits limits{{64, 128}, 4};
    fail_allocations(nth, false);
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
void for_every_driver_fault(Make make, Status code, bool persistent) {
  for (std::uint64_t nth = 1;; ++nth) {
    CHECK(nth < 200);
    const auto plan = std::make_shared<FaultPlan>();
    const DriverPtr driver = with_faults(open_host_driver(), plan);
    const auto pool = std::make_shared<PagePool>(driver, 6 * page_bytes, page_bytes);
    const auto slabs = SlabAllocator::create(make(driver, pool), {{page_bytes / 2}, 3});
    plan->arm(nth, code, persistent);
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
template <typename Make>
void for_every_driver_fault(Make make) {
  for (const bool persistent : {false, true}) {
    for (const Status code : {Status::unknown, Status::out_of_memory, Status::not_supported}) {
      for_every_driver_fault(make, code, persistent);
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

TEST(a_slab_that_its_source_does_not_take_back_is_used_again) {
  for (const bool owned : {true, false}) {
    Scene scene({{4096}, 2, 0x7FFFFFFF, owned});
    std::vector<BlockHandle> all;
    for (int i = 0; i < 8; ++i) all.push_back(scene.slabs->allocate(0));
    scene.source->fail_at = 1;
    scene.source->persistent = true;
    for (const BlockHandle handle : all) scene.slabs->free(handle);
    for (BlockHandle& handle : all) handle = scene.slabs->allocate(0);
    CHECK_EQ(scene.slabs->statistics().slabs_made, 2);
    scene.source->fail_at = 0;
    for (const BlockHandle handle : all) scene.slabs->free(handle);
    scene.slabs->trim();
    CHECK_EQ(scene.source->runs(), 0);
  }
}

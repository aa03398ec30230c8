// Slabs that end while something in flight touches their blocks. One program with
// in_flight_test.cpp.
#include <sys/mman.h>
#include <unistd.h>

#include "image/host_slabs.h"
#include "image/supplied_slabs.h"
#include "in_flight_bench.h"
#include "transfer/page_slabs.h"

using namespace gpupool;

namespace {

constexpr std::size_t block_bytes = page_bytes;

enum class Kind { pages, host, supplied };
constexpr Kind kinds[] = {Kind::pages, Kind::host, Kind::supplied};

std::shared_ptr<SlabSource> make_source(Standstill& scene, Kind kind) {
  if (kind == Kind::pages) return std::make_shared<PageSlabs>(scene.driver, scene.pool, 1, 2);
  if (kind == Kind::host) return std::make_shared<HostSlabs>(scene.driver, 2 * block_bytes);
  const auto source = std::make_shared<SuppliedSlabs>(scene.driver, 2 * block_bytes);
  const int fd = memfd_create("slab", MFD_CLOEXEC);
  CHECK_EQ(ftruncate(fd, 2 * block_bytes), 0);
  source->supply(fd);
  close(fd);
  return source;
}

// A stream of somebody else's, with a copy that touches the run and does not begin while held.
struct Copying {
  Copying(Standstill& scene, Kind kind, DevicePtr run, bool held)
      : device(scene.device), other(device, -1, block_bytes) {
    CHECK_OK(device->stream_create(&stream));
    if (held) CHECK_OK(device->hold(stream, &scene.hold));
    if (kind == Kind::pages) {
      CHECK_OK(device->copy_to_device(run, other.data(), block_bytes, stream));
      return;
    }
    place = std::make_shared<const Reservation>(device, block_bytes);
    mapping.emplace(device, place, std::vector<PagePtr>{Page::create(device, block_bytes)});
    mapping->map();
    auto* block = reinterpret_cast<void*>(run);
    CHECK_OK(device->copy_to_host(block, place->address(), block_bytes, stream));
  }
  std::shared_ptr<host::HostDriver> device;
  HostMemory other;
  StreamHandle stream = nullptr;
  ReservationPtr place;
  std::optional<Mapping> mapping;
};

}  // namespace

TEST(slabs_keep_what_their_fill_touches) {
  Standstill scene;
  {
    PageSlabs slabs(scene.driver, scene.pool, 1, 2);
    scene.hold_at = DriverCall::fill;
    scene.refuse_to_wait();
    CHECK_THROWS(DriverError, slabs.acquire());
  }
  scene.check_kept(2);
}

TEST(slabs_that_can_wait_for_the_device_keep_nothing) {
  Standstill scene;
  {
    PageSlabs slabs(scene.driver, scene.pool, 1, 2);
    scene.plan->arm_call(DriverCall::stream_synchronize, 1, FaultPlan::every_call,
                         Status::out_of_memory);
    CHECK_THROWS(DriverError, slabs.acquire());
  }
  CHECK_EQ(scene.ledger->held().mappings, 0);
  CHECK_EQ(scene.pool->free_pages(), standstill_pages);
}

// With an allocator before the source, and by itself.
TEST(slabs_in_use_wait_for_the_device_as_they_end) {
  for (const Kind kind : kinds) {
    for (const bool allocator : {false, true}) {
      for (std::uint64_t seed = 0; seed < 20; ++seed) {
        Standstill scene(seed);
        auto source = make_source(scene, kind);
        auto slabs = SlabAllocator::create(source, {{block_bytes}, 2});
        const DevicePtr run = allocator ? slabs->address_of(slabs->allocate(0)) : source->acquire();
        const Copying copying(scene, kind, run, false);
        slabs.reset();
        source.reset();
        std::size_t bytes = 0;
        CHECK_OK(scene.device->context_synchronize());
        CHECK_OK(scene.device->page_granularity(&bytes));  // no fault has come of it
        CHECK_EQ(scene.pool->free_pages(), standstill_pages);
        CHECK_EQ(scene.ledger->held().registrations, 0);
        CHECK_EQ(scene.ledger->held().mappings, 0);
      }
    }
  }
}

TEST(slabs_keep_blocks_in_use_that_something_in_flight_touches) {
  for (const Kind kind : kinds) {
    for (const bool allocator : {false, true}) {
      Standstill scene;
      auto source = make_source(scene, kind);
      auto slabs = SlabAllocator::create(source, {{block_bytes}, 2});
      const DevicePtr run = allocator ? slabs->address_of(slabs->allocate(0)) : source->acquire();
      const Copying copying(scene, kind, run, true);
      scene.refuse_to_wait();
      slabs.reset();
      if (const auto supplied = std::dynamic_pointer_cast<SuppliedSlabs>(source)) {
        CHECK_EQ(supplied->lost(), allocator ? 1 : 0);
        CHECK_EQ(supplied->drop_idle(), 0);
      }
      source.reset();
      scene.check_kept(kind == Kind::pages ? 2 : 0);
    }
  }
}

TEST(a_single_wait_of_slabs_that_fails_keeps_nothing) {
  for (const Kind kind : kinds) {
    Standstill scene;
    auto slabs = SlabAllocator::create(make_source(scene, kind), {{block_bytes}, 2});
    const Copying copying(scene, kind, slabs->address_of(slabs->allocate(0)), false);
    scene.plan->arm_call(DriverCall::context_synchronize, 1, 1, Status::out_of_memory);
    slabs.reset();
    CHECK_EQ(scene.device->pending(), 0);
    CHECK_EQ(scene.pool->free_pages(), standstill_pages);
    CHECK_EQ(scene.ledger->held().registrations, 0);
  }
}

TEST(slabs_with_nothing_in_use_wait_for_nobody) {
  for (const Kind kind : kinds) {
    Standstill scene;
    int waits = 0;
    auto slabs = SlabAllocator::create(make_source(scene, kind), {{block_bytes}, 2});
    const BlockHandle block = slabs->allocate(0);
    scene.hooked->before = [&](DriverCall call) {
      waits += call == DriverCall::context_synchronize;
    };
    slabs->free(block);
    slabs->trim();
    slabs.reset();
    CHECK_EQ(waits, 0);
  }
}

TEST(slabs_that_cannot_be_unmapped_are_nobody_elses) {
  Standstill scene;
  auto slabs = SlabAllocator::create(make_source(scene, Kind::pages), {{block_bytes}, 2});
  static_cast<void>(slabs->allocate(0));
  scene.plan->arm_call(DriverCall::unmap, 1, FaultPlan::every_call, Status::unknown);
  slabs.reset();
  scene.plan->disarm();
  CHECK_EQ(scene.pool->statistics().withheld, 2);
  CHECK_EQ(scene.pool->statistics().owned, 0);
}

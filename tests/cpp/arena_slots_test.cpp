// Allocators for other libraries, called as those call them: out of regions that are swapped and
// resized.
#include "memory/arena_slots.h"

#include <sys/types.h>

#include <optional>
#include <set>
#include <thread>

#include "model_bench.h"

using namespace gpupool;

extern "C" void* gpupool_torch_allocate_00(ssize_t bytes, int device, void* stream);
extern "C" void gpupool_torch_free_00(void* block, ssize_t bytes, int device, void* stream);
extern "C" void* gpupool_torch_allocate_01(ssize_t bytes, int device, void* stream);
extern "C" void gpupool_torch_free_01(void* block, ssize_t bytes, int device, void* stream);

namespace {

// A resident model with one region, cut into blocks by whoever holds `slot`.
struct Scene {
  Scene() {
    region = memory.add_region(Tag::runtime, page_bytes, -1, 3 * page_bytes);
    slot.emplace(machine.faulty, region->reservation(), memory.share_out(*region, 512));
    parameter = slot->cupy_parameter();
    swap_in();
  }
  ~Scene() {
    machine.plan->disarm();
    while (!live.empty()) free(*live.begin());
  }
  void swap_in() { memory.swap_in(machine.acquire(1, memory.pages_needed())); }
  void swap_out() {
    memory.swap_out();
    machine.pool.give_back_all(1);
  }
  void resize(std::size_t bytes) {
    const std::size_t pages = (bytes + page_bytes - 1) / page_bytes;
    const std::size_t had = memory.mapped_pages(*region).size();
    std::vector<PagePtr> more;
    if (pages > had) more = machine.acquire(1, pages - had);
    memory.resize(*region, bytes, more, 0, -1);
  }
  void* allocate(std::size_t bytes) {
    void* block = reinterpret_cast<void* (*)(void*, std::size_t, int)>(ArenaSlot::cupy_allocate())(
        reinterpret_cast<void*>(parameter), bytes, 0);
    if (block != nullptr) live.insert(block);
    return block;
  }
  void free(void* block) {
    live.erase(block);
    reinterpret_cast<void (*)(void*, void*, int)>(ArenaSlot::cupy_free())(
        reinterpret_cast<void*>(parameter), block, 0);
  }

  Machine machine{8};
  ModelMemory memory{machine.faulty, page_bytes, mib};
  RegionPtr region;
  std::optional<ArenaSlot> slot;
  std::uintptr_t parameter = 0;
  std::set<void*> live;
};

DevicePtr address(const void* block) { return reinterpret_cast<DevicePtr>(block); }

}  // namespace

TEST(blocks_keep_what_is_put_in_over_a_swap) {
  Scene scene;
  std::vector<void*> blocks;
  while (void* block = scene.allocate(100'000)) {
    CHECK_EQ(address(block) % 512, 0);
    scene.machine.bench.write(address(block), pattern(blocks.size(), 100'000));
    blocks.push_back(block);
  }
  CHECK_EQ(blocks.size(), page_bytes / 100'352);
  scene.swap_out();
  scene.swap_in();
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    CHECK(scene.machine.bench.read(address(blocks[i]), 100'000) == pattern(i, 100'000));
    scene.free(blocks[i]);
  }
  CHECK_EQ(address(scene.allocate(page_bytes)), scene.region->address());
}

TEST(torch_finds_its_slot_by_name) {
  CHECK_EQ(ArenaSlot::taken(), 0);
  Scene first;
  Scene second;
  CHECK_EQ(first.slot->torch_allocate(), std::string("gpupool_torch_allocate_00"));
  CHECK_EQ(first.slot->torch_free(), std::string("gpupool_torch_free_00"));
  CHECK_EQ(second.slot->torch_allocate(), std::string("gpupool_torch_allocate_01"));
  void* a = gpupool_torch_allocate_00(page_bytes, 0, nullptr);
  void* b = gpupool_torch_allocate_01(page_bytes, 0, nullptr);
  CHECK_EQ(address(a), first.region->address());
  CHECK_EQ(address(b), second.region->address());
  CHECK(gpupool_torch_allocate_00(1, 0, nullptr) == nullptr);  // no room
  gpupool_torch_free_00(a, page_bytes, 0, nullptr);
  CHECK(gpupool_torch_allocate_00(1, 1, nullptr) == nullptr);   // another device
  CHECK(gpupool_torch_allocate_00(0, 0, nullptr) == nullptr);   // nothing
  CHECK(gpupool_torch_allocate_00(-1, 0, nullptr) == nullptr);  // nonsense
  gpupool_torch_free_00(b, page_bytes, 0, nullptr);             // the other slot's
  gpupool_torch_free_00(a, page_bytes, 0, nullptr);             // a second time
  gpupool_torch_free_00(nullptr, 0, 0, nullptr);                // nothing, as cudaFree has it
  CHECK_EQ(first.slot->refused_frees(), 2);
  CHECK_EQ(second.slot->refused_frees(), 0);
  gpupool_torch_free_01(b, page_bytes, 0, nullptr);
  CHECK_EQ(second.slot->refused_frees(), 0);
}

TEST(a_slot_is_taken_until_its_last_block_is_freed) {
  Scene scene;
  void* a = scene.allocate(1000);
  void* b = scene.allocate(1000);
  scene.slot.reset();
  CHECK_EQ(ArenaSlot::taken(), 1);
  CHECK(gpupool_torch_allocate_00(1, 0, nullptr) == nullptr);  // closed
  CHECK_THROWS(UsageError, scene.memory.share_out(*scene.region, 512));
  const ArenaSlot other(scene.machine.faulty, scene.region->reservation(),
                        std::make_shared<Arena>(scene.region->address(), mib));
  CHECK_EQ(other.index(), 1);
  scene.free(a);
  CHECK_EQ(ArenaSlot::taken(), 2);
  scene.swap_out();
  scene.free(b);  // also while the model is out
  CHECK_EQ(ArenaSlot::taken(), 1);
  static_cast<void>(scene.memory.share_out(*scene.region, 512));
  scene.free(a);  // nobody's slot now: refused, and no harm done
}

TEST(the_addresses_outlive_the_model_while_blocks_are_in_use) {
  void* block = nullptr;
  std::weak_ptr<const Reservation> addresses;
  {
    const Scene scene;
    addresses = scene.region->reservation();
    block = gpupool_torch_allocate_00(1000, 0, nullptr);
  }
  CHECK(!addresses.expired());
  gpupool_torch_free_00(block, 1000, 0, nullptr);
  CHECK(addresses.expired());
  CHECK_EQ(ArenaSlot::taken(), 0);
}

TEST(slots_run_out_with_a_clear_error) {
  Scene scene;
  std::vector<std::unique_ptr<ArenaSlot>> more;
  const auto make = [&] {
    more.push_back(
        std::make_unique<ArenaSlot>(scene.machine.faulty, scene.region->reservation(),
                                    std::make_shared<Arena>(scene.region->address(), page_bytes)));
  };
  while (more.size() < arena_slots - 1) make();
  CHECK_EQ(more.back()->torch_free(), std::string("gpupool_torch_free_77"));
  CHECK_THROWS(UsageError, make());
  more.erase(more.begin() + 5);
  make();
  CHECK_EQ(more.back()->index(), 6);
}

TEST(a_free_waits_for_the_device) {
  Scene scene;
  void* block = scene.allocate(page_bytes);
  EventHandle event = nullptr;
  const Bench& bench = scene.machine.bench;
  CHECK_OK(bench->event_create(&event));
  for (int i = 0; i < 20; ++i) {
    CHECK_OK(bench->fill(address(block), 7, page_bytes, bench.stream()));
  }
  CHECK_OK(bench->event_record(event, bench.stream()));
  scene.free(block);
  CHECK_OK(bench->event_query(event));
  CHECK_OK(bench->event_destroy(event));
}

TEST(a_free_that_cannot_wait_keeps_the_block) {
  Scene scene;
  void* block = scene.allocate(page_bytes);
  scene.machine.plan->arm(1, Status::launch_timeout, false);
  scene.free(block);
  CHECK_EQ(scene.slot->refused_frees(), 1);
  CHECK(scene.allocate(1) == nullptr);
  scene.machine.plan->disarm();
  scene.free(block);
  CHECK(scene.allocate(1) != nullptr);
}

TEST(the_room_follows_the_size_of_the_region) {
  Scene scene;
  CHECK(scene.allocate(page_bytes) != nullptr);
  CHECK(scene.allocate(1) == nullptr);
  scene.resize(3 * page_bytes);
  void* block = scene.allocate(1000);
  CHECK_EQ(address(block), scene.region->address() + page_bytes);
  CHECK_THROWS(UsageError, scene.resize(page_bytes));  // the block would be cut off
  CHECK_EQ(scene.region->bytes(), 3 * page_bytes);
  CHECK_EQ(scene.memory.mapped_pages(*scene.region).size(), 3);
  scene.resize(page_bytes + 1024);
  CHECK(scene.allocate(1000) == nullptr);
  scene.free(block);
  scene.resize(page_bytes);
  CHECK(scene.allocate(1) == nullptr);
}

TEST(a_resize_that_fails_leaves_the_room_as_it_was) {
  for (const std::size_t bytes : {page_bytes, 3 * page_bytes}) {
    std::uint64_t nth = 0, injected = 1;
    while (injected > 0) {
      Scene scene;
      scene.resize(2 * page_bytes);
      const auto more = scene.machine.acquire(1, bytes > 2 * page_bytes ? 1 : 0);
      scene.machine.plan->arm(++nth, Status::unknown, false);
      try {
        scene.memory.resize(*scene.region, bytes, more, 0, -1);
      } catch (const DriverError&) {
      }
      injected = scene.machine.plan->injected();
      scene.machine.plan->disarm();
      CHECK_EQ(scene.region->bytes(), injected > 0 ? 2 * page_bytes : bytes);
      CHECK(scene.allocate(scene.region->bytes() + 1) == nullptr);
      CHECK(scene.allocate(scene.region->bytes()) != nullptr);
    }
    CHECK(nth > 1);
  }
}

TEST(threads_allocate_and_free_as_torch_does) {
  Scene scene;
  const bool host = scene.machine.bench.driver()->kind() == DeviceKind::host;
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (std::uint8_t value = 1; value <= 4; ++value) {
    threads.emplace_back([&, value] {
      for (int i = 0; i < 300; ++i) {
        void* block = gpupool_torch_allocate_00(4096 + i, 0, nullptr);
        wrong += block == nullptr;
        if (block == nullptr) continue;
        if (host) {
          std::memset(block, value, 4096);
          for (int at = 0; at < 4096; ++at) {
            wrong += static_cast<std::uint8_t*>(block)[at] != value;
          }
        }
        gpupool_torch_free_00(block, 4096 + i, 0, nullptr);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(wrong.load(), 0);
  CHECK_EQ(scene.slot->refused_frees(), 0);
}

// The slab allocator with several threads: blocks change hands, threads end, frees race.
#include <atomic>
#include <optional>
#include <thread>

#include "slab_bench.h"

using namespace gpupool;

namespace {

template <typename Work>
void in_another_thread(Work work) {
  std::exception_ptr failure;
  std::thread([&] {
    try {
      work();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
}

bool frees(SlabAllocator& slabs, BlockHandle handle) {
  try {
    slabs.free(handle);
    return true;
  } catch (const StaleBlock&) {
    return false;
  }
}

struct Held {
  BlockHandle handle;
  std::size_t shape;
};

// Blocks on their way from one thread to another.
struct Mailbox {
  std::mutex mutex;
  std::vector<Held> blocks;

  void put(Held block) {
    const std::lock_guard lock(mutex);
    blocks.push_back(block);
  }
  std::optional<Held> get(std::size_t at) {
    const std::lock_guard lock(mutex);
    if (blocks.empty()) return {};
    std::swap(blocks[at % blocks.size()], blocks.back());
    const Held block = blocks.back();
    blocks.pop_back();
    return block;
  }
};

// Allocates, frees, gives away and takes over; every block is checked before it is freed.
void trade(SlabAllocator& slabs, Mailbox& mailbox, std::uint64_t seed, int steps,
           std::atomic<int>& wrong) {
  std::mt19937_64 random(seed);
  std::vector<Held> mine;
  std::vector<BlockHandle> dead;
  const auto free = [&](Held block) {
    wrong += !stamped(slabs.address_of(block.handle), slabs.block_bytes(block.shape), block.handle);
    wrong += !frees(slabs, block.handle);
    dead.push_back(block.handle);
  };
  for (int step = 0; step < steps; ++step) {
    const std::size_t kind = random() % 100;
    if (kind < 45) {
      const std::size_t shape = random() % 3;
      try {
        const BlockHandle handle = slabs.allocate(shape);
        stamp(slabs.address_of(handle), slabs.block_bytes(shape), handle);
        mine.push_back({handle, shape});
      } catch (const OutOfBlocks&) {
      }
    } else if (kind < 65 && !mine.empty()) {
      std::swap(mine[random() % mine.size()], mine.back());
      free(mine.back());
      mine.pop_back();
    } else if (kind < 75 && !mine.empty()) {
      mailbox.put(mine.back());
      mine.pop_back();
    } else if (kind < 95) {
      if (const auto block = mailbox.get(random())) free(*block);
    } else if (kind < 99 && !dead.empty()) {
      wrong += frees(slabs, dead[random() % dead.size()]);
    } else if (step % 50 == 0) {
      slabs.trim();
    }
  }
  for (const Held block : mine) mailbox.put(block);
}

}  // namespace

TEST(threads_trade_blocks_and_come_and_go) {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    SlabLimits limits{{64, 192, 4096}, 12};
    limits.thread_owned = seed % 4 != 3;
    Scene scene(limits);
    Mailbox mailbox;
    std::atomic<int> wrong{0};
    for (int generation = 0; generation < 3; ++generation) {
      std::vector<std::thread> threads;
      for (std::uint64_t i = 0; i < 3; ++i) {
        threads.emplace_back([&, i] {
          trade(*scene.slabs, mailbox, 100 * seed + 10 * generation + i, 8000, wrong);
        });
      }
      for (std::thread& thread : threads) thread.join();
    }
    std::size_t bytes = 0;
    for (const Held block : mailbox.blocks) bytes += scene.slabs->block_bytes(block.shape);
    CHECK_EQ(scene.slabs->statistics().bytes_live, bytes);
    while (const auto block = mailbox.get(0)) {
      CHECK(stamped(scene.slabs->address_of(block->handle), scene.slabs->block_bytes(block->shape),
                    block->handle));
      scene.slabs->free(block->handle);
    }
    scene.slabs->trim();
    CHECK_EQ(wrong.load(), 0);
    CHECK_EQ(scene.source->runs(), 0);
  }
}

// One block, and two threads that free it at once: the owner of its slab and another one. Whatever
// the order, one is told that it was freed already, and the block is free once.
TEST(of_two_frees_at_once_one_is_refused) {
  Scene scene({{slab_bytes / 4}, 2});
  std::atomic<std::uint64_t> offered{0};
  std::atomic<int> answer{-1};
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop.load()) {
      const std::uint64_t handle = offered.exchange(0);
      if (handle != 0) {
        answer.store(frees(*scene.slabs, BlockHandle{handle}));
      } else {
        std::this_thread::yield();
      }
    }
  });
  std::mt19937 random(1);
  int by_owner = 0;
  int wrong = 0;
  constexpr int races = 20'000;
  for (int race = 0; race < races; ++race) {
    // In a fresh slab, which this thread owns; a second block keeps it from being emptied.
    const BlockHandle kept = scene.slabs->allocate(0);
    const BlockHandle handle = scene.slabs->allocate(0);
    offered.store(static_cast<std::uint64_t>(handle));
    if (race % 2 == 0) {
      while (offered.load() != 0) std::this_thread::yield();
    }
    for (std::uint32_t pause = random() % 2000; pause > 0; --pause) asm volatile("");
    const bool mine = frees(*scene.slabs, handle);
    while (answer.load() < 0) std::this_thread::yield();
    wrong += (answer.exchange(-1) == 1) == mine;
    by_owner += mine;
    wrong += scene.slabs->statistics().shapes[0].blocks_live != 1;
    scene.slabs->free(kept);
    scene.slabs->trim();
  }
  stop.store(true);
  other.join();
  CHECK_EQ(wrong, 0);
  CHECK_EQ(scene.source->runs(), 0);
  CHECK(by_owner > 0 && by_owner < races);  // else nothing raced
}

TEST(a_slab_is_taken_when_another_thread_frees) {
  Scene scene({{64}, 4});
  const BlockHandle first = scene.slabs->allocate(0);
  const BlockHandle second = scene.slabs->allocate(0);
  in_another_thread([&] {
    CHECK(frees(*scene.slabs, first));
    CHECK(!frees(*scene.slabs, first));
  });
  CHECK_EQ(scene.slabs->statistics().slabs_taken, 1);
  CHECK(!frees(*scene.slabs, first));
  scene.slabs->free(second);
  CHECK_EQ(scene.slabs->statistics().slabs, 1);
  CHECK_EQ(scene.slabs->statistics().slabs_taken, 1);
}

TEST(a_stale_handle_takes_no_slab) {
  Scene scene({{64}, 4});
  const BlockHandle stale = scene.slabs->allocate(0);
  scene.slabs->free(stale);
  in_another_thread([&] { CHECK(!frees(*scene.slabs, stale)); });
  CHECK_EQ(scene.slabs->statistics().slabs_taken, 0);
}

TEST(a_slab_used_by_one_thread_alone_is_its_own_again) {
  Scene scene({{64}, 4});
  const BlockHandle first = scene.slabs->allocate(0);
  in_another_thread([&] { scene.slabs->free(first); });
  for (int i = 0; i < 2000; ++i) scene.slabs->free(scene.slabs->allocate(0));
  const BlockHandle second = scene.slabs->allocate(0);
  in_another_thread([&] { scene.slabs->free(second); });
  CHECK_EQ(scene.slabs->statistics().slabs_taken, 2);
  CHECK_EQ(scene.slabs->statistics().slabs_made, 1);
}

TEST(a_slab_used_in_turns_goes_to_no_thread) {
  Scene scene({{64}, 4});
  BlockHandle block = scene.slabs->allocate(0);
  for (int i = 0; i < 100; ++i) {
    in_another_thread([&] {
      scene.slabs->free(block);
      block = scene.slabs->allocate(0);
    });
    scene.slabs->free(block);
    block = scene.slabs->allocate(0);
  }
  CHECK_EQ(scene.slabs->statistics().slabs_taken, 1);
  CHECK_EQ(scene.slabs->statistics().slabs_made, 1);
}

TEST(what_another_thread_has_free_is_found_when_nothing_else_is) {
  Scene scene({{4096}, 1});
  const BlockHandle mine = scene.slabs->allocate(0);
  in_another_thread([&] {
    std::vector<BlockHandle> all;
    for (int i = 0; i < 3; ++i) all.push_back(scene.slabs->allocate(0));
    CHECK_THROWS(OutOfBlocks, scene.slabs->allocate(0));
    for (const BlockHandle handle : all) scene.slabs->free(handle);
  });
  scene.slabs->free(mine);
}

TEST(trim_finds_what_another_thread_left_empty) {
  Scene scene({{4096}, 4});
  std::atomic<int> stage{0};
  std::thread other([&] {
    scene.slabs->free(scene.slabs->allocate(0));
    stage = 1;
    while (stage != 2) std::this_thread::yield();
    scene.slabs->free(scene.slabs->allocate(0));  // and it goes on
  });
  while (stage != 1) std::this_thread::yield();
  CHECK_EQ(scene.source->runs(), 1);
  scene.slabs->trim();
  CHECK_EQ(scene.source->runs(), 0);
  stage = 2;
  other.join();
  CHECK_EQ(scene.slabs->statistics().slabs_made, 2);
}

TEST(a_thread_that_ends_leaves_its_slabs) {
  Scene scene({{4096}, 4});
  BlockHandle left{};
  in_another_thread([&] {
    left = scene.slabs->allocate(0);
    for (int i = 0; i < 3; ++i) static_cast<void>(scene.slabs->allocate(0));
    scene.slabs->free(scene.slabs->allocate(0));
  });
  CHECK_EQ(scene.source->runs(), 2);
  stamp(scene.slabs->address_of(left), 4096, left);
  scene.slabs->free(left);
  const BlockHandle again = scene.slabs->allocate(0);  // in a slab that is there
  CHECK_EQ(scene.source->runs(), 2);
  scene.slabs->free(again);
  CHECK_EQ(scene.slabs->statistics().slabs_taken, 0);  // they were left, not taken
}

TEST(a_thread_outlives_the_allocators_it_used) {
  const auto source = std::make_shared<HeapSlabs>(slab_bytes);
  in_another_thread([&] {
    for (int i = 0; i < 10; ++i) {
      const auto one = SlabAllocator::create(source, {{64}, 4});
      const auto two = SlabAllocator::create(source, {{64}, 4});
      for (int k = 0; k < 100; ++k) {
        const BlockHandle a = one->allocate(0);
        const BlockHandle b = two->allocate(0);
        CHECK_EQ(static_cast<std::uint64_t>(a), static_cast<std::uint64_t>(b));
        CHECK(one->address_of(a) != two->address_of(b));
        one->free(a);
        CHECK(two->address_of(b) != 0);
        two->free(b);
      }
      CHECK_EQ(source->runs(), 2);
    }
  });
  CHECK_EQ(source->runs(), 0);
}

namespace {

std::shared_ptr<SlabAllocator> late;
std::atomic<int> late_pairs{0};
struct Late {
  ~Late() {  // after the thread has left the allocator
    late->free(late->allocate(0));
    ++late_pairs;
  }
};

}  // namespace

TEST(a_thread_may_still_allocate_while_it_ends) {
  const auto source = std::make_shared<HeapSlabs>(slab_bytes);
  late = SlabAllocator::create(source, {{64}, 4});
  in_another_thread([] {
    static thread_local Late last;
    static_cast<void>(last);
    late->free(late->allocate(0));
  });
  CHECK_EQ(late_pairs.load(), 1);
  late.reset();
  CHECK_EQ(source->runs(), 0);
}

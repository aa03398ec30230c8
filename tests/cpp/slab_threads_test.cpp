// The slab allocator with several threads: blocks change hands, threads end, frees race.
#include <atomic>
#include <optional>
#include <thread>

#include "slab_bench.h"

using namespace gpupool;

namespace {

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

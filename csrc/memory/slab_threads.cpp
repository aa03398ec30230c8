// The slab allocator's threads: what each has of it, and how a slab is taken from one.
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <thread>
#include <utility>

#include "memory/slab_lists.h"

namespace gpupool {

bool can_disown() noexcept {
  static const bool registered =
      syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
  return registered;
}

// The allocators a thread is part of; it leaves them when it ends.
struct SlabAllocator::Memberships {
  struct Membership {
    std::uint64_t id;
    std::weak_ptr<SlabAllocator> allocator;
    Thread* thread;
  };
  std::vector<Membership> all;
  static thread_local Memberships mine;
  static constinit thread_local bool ended;

  ~Memberships() {
    ended = true;
    Mine::mine = {0, nullptr};
    for (const Membership& membership : all) {
      if (const auto allocator = membership.allocator.lock()) allocator->leave(*membership.thread);
    }
  }
};
thread_local SlabAllocator::Memberships SlabAllocator::Memberships::mine;
constinit thread_local bool SlabAllocator::Memberships::ended = false;

void SlabAllocator::Thread::enqueue(const Slab& slab) noexcept {
  if (queued[slab.slot] != 0 || current[slab.shape] == &slab) return;
  Queue& queue = queues[slab.shape];
  queue.slots[(queue.begin + queue.count++) % queue.size] = slab.slot;
  queued[slab.slot] = 1;
}

SlabAllocator::Slab* SlabAllocator::Thread::next(Slab* table, std::size_t shape) noexcept {
  Queue& queue = queues[shape];
  if (queue.count == 0) return nullptr;
  const std::uint32_t slot = queue.slots[queue.begin];
  queue.begin = (queue.begin + 1) % queue.size;
  --queue.count;
  queued[slot] = 0;
  return &table[slot];
}

// This thread's part of the allocator, if it has one.
SlabAllocator::Thread* SlabAllocator::find() const noexcept {
  if (Mine::mine.allocator == id_) return Mine::mine.thread;
  if (Memberships::ended) return nullptr;
  for (const auto& membership : Memberships::mine.all) {
    if (membership.id == id_) {
      Mine::mine = {id_, membership.thread};
      return membership.thread;
    }
  }
  return nullptr;
}

// The same, made if need be; null for a thread that must not own slabs.
SlabAllocator::Thread* SlabAllocator::join() {
  if (Thread* thread = find()) return thread;
  if (!owned_ || Memberships::ended) return nullptr;
  auto& all = Memberships::mine.all;
  std::erase_if(all, [](const auto& membership) { return membership.allocator.expired(); });
  all.reserve(all.size() + 1);
  auto thread = std::make_unique<Thread>();
  thread->queued.resize(slots_);
  thread->queues.resize(shapes_);
  for (std::size_t shape = 0; shape < shapes_; ++shape) {
    thread->current[shape] = &table_[shape * limits_.slabs_max];  // not its own, which is found out
    thread->queues[shape].size = static_cast<std::uint32_t>(limits_.slabs_max);  // each slot once
    thread->queues[shape].slots = std::make_unique<std::uint32_t[]>(limits_.slabs_max);
  }
  const std::lock_guard lock(mutex_);
  threads_.push_back(std::move(thread));
  all.push_back({id_, weak_from_this(), threads_.back().get()});
  Mine::mine = {id_, threads_.back().get()};
  return threads_.back().get();
}

void SlabAllocator::leave(Thread& thread) noexcept {
  const std::lock_guard lock(mutex_);
  for (std::size_t slot = 0; slot < slots_; ++slot) {
    Slab& slab = table_[slot];
    if (slab.owner.load(std::memory_order_relaxed) != &thread) continue;
    slab.owner.store(nullptr, std::memory_order_relaxed);
    slab.streak = 0;
    if (slab.free.load(std::memory_order_relaxed) == slab.usable.load(std::memory_order_relaxed)) {
      emptied(slab);
    } else {
      share(slab);
    }
  }
  std::erase_if(threads_, [&](const auto& one) { return one.get() == &thread; });
}

// Takes a slab from its owner, if it has one: no thread is inside a Working section of it as its
// owner when this returns, nor will be. Throws std::system_error, and has changed nothing.
void SlabAllocator::disown(Slab& slab) {
  Thread* owner = slab.owner.load(std::memory_order_relaxed);
  if (owner == nullptr) return;
  slab.owner.store(nullptr, std::memory_order_relaxed);
  slab_pause();
  if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) != 0) {
    slab.owner.store(owner, std::memory_order_relaxed);
    throw std::system_error(errno, std::generic_category(), "membarrier");
  }
  // A few instructions, unless that thread was just preempted.
  while (owner->working.load(std::memory_order_acquire) == &slab) std::this_thread::yield();
  slab.streak = 0;
  slab.last_user = nullptr;
  ++taken_;
  share(slab);
}

}  // namespace gpupool

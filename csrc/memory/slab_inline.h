// What slab.h leaves to the compiler: the common case of allocate() and free(), inline.
#pragma once

#include "memory/slab.h"

namespace gpupool {

// Where two threads may meet at the worst time. A test defines GPUPOOL_SLAB_PAUSE and lingers here.
#ifdef GPUPOOL_SLAB_PAUSE
void slab_pause() noexcept;
#else
inline void slab_pause() noexcept {}
#endif

// One slot of the table. Its generations go on when the slab is returned and another made in its
// place, so no handle is ever valid twice.
//
// `free`, `stack` and `usable`, and the generations of blocks, are changed by the owner alone, and
// then only inside a Working section; while there is no owner, by who holds the allocator's mutex.
struct alignas(64) SlabAllocator::Slab {
  std::atomic<Thread*> owner{nullptr};                        // set with the mutex held
  std::unique_ptr<std::atomic<std::uint32_t>[]> generations;  // made with the first slab here,
  std::atomic<bool> made{false};                              // which is then set
  // The free blocks, as the handles of their last use plus 1: a block's next handle is then the
  // result of one load, which all that is done with it waits for.
  std::unique_ptr<std::uint64_t[]> stack;
  std::atomic<std::uint32_t> free{0};
  std::atomic<std::uint32_t> usable{0};  // blocks not used up
  std::uint32_t slot = 0;
  std::uint32_t blocks = 0;
  std::uint32_t shape = 0;
  std::atomic<DevicePtr> address{0};
  std::size_t block_bytes = 0;

  // With the mutex held.
  Slab* previous = nullptr;
  Slab* next = nullptr;
  Thread* last_user = nullptr;  // only ever compared
  std::uint32_t streak = 0;     // uses by last_user alone
  bool held = false;            // there is memory behind it
  bool listed = false;          // in the list of slabs without an owner that have a free block
};

// What one thread has of one allocator. All but `working` is the thread's own.
struct SlabAllocator::Thread {
  // Slabs of one shape that have room, oldest first; some of them may have been taken since.
  struct Queue {
    std::unique_ptr<std::uint32_t[]> slots;
    std::uint32_t size = 0;
    std::uint32_t begin = 0;
    std::uint32_t count = 0;
  };
  alignas(64) std::atomic<Slab*> working{nullptr};
  Slab* current[shapes_max] = {};    // of each shape; null beyond the last
  std::vector<Queue> queues;         // of each shape
  std::vector<std::uint8_t> queued;  // of each slot: whether it is in its queue

  void enqueue(const Slab& slab) noexcept;              // unless it is in there, or the current one
  Slab* next(Slab* table, std::size_t shape) noexcept;  // null if there is none
};

// The thread's own part of the allocator it used last.
struct SlabAllocator::Mine {
  std::uint64_t allocator;
  Thread* thread;
  static thread_local Mine mine __attribute__((tls_model("initial-exec")));
};
inline constinit thread_local SlabAllocator::Mine SlabAllocator::Mine::mine{0, nullptr};

// While one lives, nobody takes `slab` from a thread that finds itself to be its owner.
//
// Dekker's protocol with the fences all on the other side. Here: announce the slab, then read its
// owner. There (disown): take the owner out, membarrier, then wait while the slab is announced.
// Either this thread sees that it is no longer the owner, or the other one waits for it.
class SlabAllocator::Working {
 public:
  Working(Thread& thread, Slab& slab) noexcept : thread_(thread) {
    thread.working.store(&slab, std::memory_order_release);
    std::atomic_signal_fence(std::memory_order_seq_cst);  // membarrier(2) makes it a real one
    slab_pause();
    owner_ = slab.owner.load(std::memory_order_relaxed) == &thread;
  }
  ~Working() { thread_.working.store(nullptr, std::memory_order_release); }
  Working(const Working&) = delete;
  Working& operator=(const Working&) = delete;
  [[nodiscard]] bool owner() const noexcept { return owner_; }

 private:
  Thread& thread_;
  bool owner_;
};

// For any thread.
inline bool SlabAllocator::live(const Slab& slab, BlockName name) noexcept {
  return slab.made.load(std::memory_order_acquire) && live_in_made(slab, name);
}

// For its owner, who had it made.
inline bool SlabAllocator::live_in_made(const Slab& slab, BlockName name) noexcept {
  return name.block < slab.blocks && (name.generation & 1) != 0 &&
         slab.generations[name.block].load(std::memory_order_relaxed) == name.generation;
}

// For who may change the slab, which has `free` > 0 free blocks.
inline BlockHandle SlabAllocator::take(Slab& slab, std::uint32_t free) noexcept {
  slab_pause();
  const BlockHandle handle{slab.stack[free - 1] + 1};
  slab.free.store(free - 1, std::memory_order_relaxed);
  const BlockName name = name_of(handle);
  slab.generations[name.block].store(name.generation, std::memory_order_relaxed);
  return handle;
}

// For who may change the slab, which has `free` free blocks; `name` is live and not used up.
inline void SlabAllocator::put(Slab& slab, BlockName name, std::uint32_t free) noexcept {
  slab_pause();
  slab.generations[name.block].store(name.generation + 1, std::memory_order_relaxed);
  slab.stack[free] = static_cast<std::uint64_t>(handle_of(name)) + 1;
  slab.free.store(free + 1, std::memory_order_relaxed);
}

inline BlockHandle SlabAllocator::allocate(std::size_t shape) {
  if (Mine::mine.allocator == id_ && shape < shapes_) [[likely]] {
    Thread& thread = *Mine::mine.thread;
    Slab& slab = *thread.current[shape];
    const Working working(thread, slab);
    if (working.owner()) [[likely]] {
      const std::uint32_t free = slab.free.load(std::memory_order_relaxed);
      if (free > 0) [[likely]]
        return take(slab, free);
    }
  }
  return allocate_slowly(shape);
}

inline void SlabAllocator::free(BlockHandle handle) {
  const BlockName name = name_of(handle);
  if (Mine::mine.allocator == id_ && name.slab < slots_) [[likely]] {
    Thread& thread = *Mine::mine.thread;
    Slab& slab = table_[name.slab];
    const Working working(thread, slab);
    if (working.owner() && live_in_made(slab, name) && name.generation + 1 != retired_) [[likely]] {
      const std::uint32_t free = slab.free.load(std::memory_order_relaxed);
      const std::uint32_t usable = slab.usable.load(std::memory_order_relaxed);
      // The first free block and the last one back bring more work, unless it is current; the
      // difference wraps around for `free` of 0, and for `usable` of 1, where `free` is 0.
      if (free - 1 < usable - 2 || thread.current[slab.shape] == &slab) [[likely]] {
        put(slab, name, free);
        return;
      }
    }
  }
  free_slowly(handle);
}

inline DevicePtr SlabAllocator::address_of(BlockHandle handle) const {
  const BlockName name = name_of(handle);
  if (name.slab >= slots_ || !live(table_[name.slab], name)) [[unlikely]]
    refuse(name);
  const Slab& slab = table_[name.slab];
  return slab.address.load(std::memory_order_relaxed) + name.block * slab.block_bytes;
}

}  // namespace gpupool

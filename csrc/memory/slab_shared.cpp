// The slab allocator under its lock: slabs without an owner, and their making and return.
#include <algorithm>
#include <exception>
#include <string>

#include "memory/slab_lists.h"

namespace gpupool {
namespace {

// A slab goes to the thread that alone has used it so often in a row.
constexpr std::uint32_t streak_to_own = 1024;

std::uint32_t count(const std::atomic<std::uint32_t>& value) {
  return value.load(std::memory_order_relaxed);
}

}  // namespace

void SlabAllocator::note_use(Slab& slab, Thread* thread) const noexcept {
  slab.streak = slab.last_user == thread ? std::min(slab.streak + 1, streak_to_own) : 0;
  slab.last_user = thread;
}

BlockHandle SlabAllocator::take_shared(Slab& slab, Thread* thread) noexcept {
  List& list = lists_[slab.shape];
  if (list.spare == &slab) list.spare = nullptr;
  const BlockHandle handle = take(slab, count(slab.free));
  note_use(slab, thread);
  if (thread != nullptr && slab.streak == streak_to_own) {
    unlist(slab);
    slab.owner.store(thread, std::memory_order_relaxed);
    thread->current[slab.shape] = &slab;
  } else if (count(slab.free) == 0) {
    unlist(slab);
  }
  return handle;
}

// A slab without an owner has a free block: in the list, if it was not.
void SlabAllocator::share(Slab& slab) noexcept {
  if (slab.listed || count(slab.free) == 0) return;
  List& list = lists_[slab.shape];
  const bool in_use = count(slab.free) < count(slab.usable);
  slab.previous = in_use ? nullptr : list.last;
  slab.next = in_use ? list.first : nullptr;
  (slab.previous == nullptr ? list.first : slab.previous->next) = &slab;
  (slab.next == nullptr ? list.last : slab.next->previous) = &slab;
  slab.listed = true;
}

void SlabAllocator::unlist(Slab& slab) noexcept {
  if (!slab.listed) return;
  List& list = lists_[slab.shape];
  (slab.previous == nullptr ? list.first : slab.previous->next) = slab.next;
  (slab.next == nullptr ? list.last : slab.next->previous) = slab.previous;
  if (list.spare == &slab) list.spare = nullptr;
  slab.listed = false;
}

// A slab without an owner has no block in use: the spare one, or returned.
void SlabAllocator::emptied(Slab& slab) noexcept {
  List& list = lists_[slab.shape];
  unlist(slab);
  if (list.spare == nullptr && count(slab.usable) > 0) {
    share(slab);
    list.spare = &slab;
    return;
  }
  try {
    return_slab(slab);
  } catch (...) {  // counted; the block was freed all the same, and the slab can be used
  }
}

SlabAllocator::Slab& SlabAllocator::make_slab(std::size_t shape) {
  List& list = lists_[shape];
  const std::size_t slots_end = (shape + 1) * limits_.slabs_max;
  if (held_ == limits_.slabs_max || (list.returned == nullptr && list.unmade == slots_end)) {
    throw OutOfBlocks("no free block of " + std::to_string(limits_.block_bytes[shape]) +
                      " bytes, and the limit of " + std::to_string(limits_.slabs_max) +
                      " slabs is reached");
  }
  Slab& slab = list.returned != nullptr ? *list.returned : table_[list.unmade];
  if (slab.stack == nullptr) {
    auto stack = std::make_unique<std::uint64_t[]>(slab.blocks);
    slab.generations = std::make_unique<std::atomic<std::uint32_t>[]>(slab.blocks);
    slab.stack = std::move(stack);
    for (std::uint32_t block = 0; block < slab.blocks; ++block) {
      slab.stack[block] =
          static_cast<std::uint64_t>(handle_of({slab.slot, slab.blocks - 1 - block, 0}));
    }
    slab.free.store(slab.blocks, std::memory_order_relaxed);
    slab.usable.store(slab.blocks, std::memory_order_relaxed);
    slab.made.store(true, std::memory_order_release);
  }
  slab.address.store(source_->acquire(), std::memory_order_relaxed);
  if (list.returned != nullptr) {
    list.returned = slab.next;
  } else {
    ++list.unmade;
  }
  slab.next = nullptr;
  slab.held = true;
  slab.streak = 0;
  ++held_;
  ++made_;
  return slab;
}

// An empty slab without an owner. What the source throws comes out; the slab then stays in use.
void SlabAllocator::return_slab(Slab& slab) {
  try {
    source_->release(slab.address.load(std::memory_order_relaxed));
  } catch (...) {
    ++return_failures_;
    share(slab);
    throw;
  }
  unlist(slab);
  slab.held = false;
  --held_;
  ++returned_;
  if (count(slab.usable) > 0) {  // else the slot is used up
    slab.next = lists_[slab.shape].returned;
    lists_[slab.shape].returned = &slab;
  }
}

void SlabAllocator::trim() {
  const std::lock_guard lock(mutex_);
  std::exception_ptr failure;
  for (std::size_t slot = 0; slot < slots_; ++slot) {
    Slab& slab = table_[slot];
    if (!slab.held || count(slab.free) != count(slab.usable)) continue;
    try {
      disown(slab);
      if (count(slab.free) == count(slab.usable)) return_slab(slab);
    } catch (...) {
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

// Finds room for a block of `shape` where no slab can be made: in a slab that a thread owns, or by
// the return of an empty one of another shape. False if there is neither.
bool SlabAllocator::reclaim(std::size_t shape) {
  for (std::size_t slot = shape * limits_.slabs_max; slot < (shape + 1) * limits_.slabs_max;
       ++slot) {
    Slab& slab = table_[slot];
    if (!slab.held || slab.owner.load() == nullptr || count(slab.free) == 0) continue;
    disown(slab);
    if (slab.listed) return true;
  }
  for (std::size_t slot = 0; slot < slots_; ++slot) {
    Slab& slab = table_[slot];
    if (!slab.held || count(slab.free) != count(slab.usable)) continue;
    disown(slab);
    if (count(slab.free) != count(slab.usable)) continue;
    try {
      return_slab(slab);
      return true;
    } catch (...) {  // counted
    }
  }
  return false;
}

}  // namespace gpupool

// What the scenarios do with blocks: those of slabs, and those of a region that is shared out.
#pragma once

#include "fault_world.h"
#include "image/host_slabs.h"
#include "memory/arena.h"
#include "transfer/page_slabs.h"

namespace gpupool {

// Slabs of one block each, made, emptied, used again and given back. Whatever fails, no block is in
// use when they end.
inline void use_slabs(std::shared_ptr<SlabSource> source) {
  const auto slabs = SlabAllocator::create(std::move(source), {{page_bytes}, 3});
  std::vector<BlockHandle> live;
  live.reserve(3);
  const auto free_all = [&] {
    for (const BlockHandle handle : live) slabs->free(handle);
    live.clear();
  };
  try {
    for (const int blocks : {3, 2}) {
      while (live.size() < static_cast<std::size_t>(blocks)) live.push_back(slabs->allocate(0));
      free_all();
    }
  } catch (...) {
    free_all();
    throw;
  }
  slabs->trim();
}

inline std::shared_ptr<SlabSource> slabs_of_pages(World& w) {
  return std::make_shared<PageSlabs>(w.driver, w.shared_pool(), 7, 1);
}
inline std::shared_ptr<SlabSource> pinned_slabs(World& w) {
  return std::make_shared<HostSlabs>(w.driver, page_bytes);
}
inline void leave_a_block_in_use(std::shared_ptr<SlabSource> source) {
  static_cast<void>(SlabAllocator::create(std::move(source), {{page_bytes}, 1})->allocate(0));
}

// Blocks of a region come and go while it grows.
inline void use_arena(World& w) {
  const auto arena = w.a->memory.share_out(*w.a->regions[1], 512);
  w.made.push_back(arena);
  const auto first = arena->allocate(5000), second = arena->allocate(3000);
  arena->free(*first);
  w.a->resize(1, 2 * page_bytes + 5);
  const auto third = arena->allocate(page_bytes);
  arena->free(*second);
  arena->free(*third);
}
inline void check_arena(World& w, bool failed) {
  if (w.made.empty()) return;
  const auto arena = std::static_pointer_cast<const Arena>(w.made[0]);
  const ArenaStatistics now = arena->statistics();
  CHECK_EQ(now.limit_bytes, w.a->regions[1]->bytes());
  if (failed) return;
  CHECK_EQ(now.live_blocks, 0);
  CHECK_EQ(now.free_blocks, 1);
}

}  // namespace gpupool

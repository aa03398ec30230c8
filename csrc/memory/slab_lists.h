// What only the slow side of the slab allocator knows.
#pragma once

#include "memory/slab.h"

namespace gpupool {

// Whether a slab can be taken from its owner: a private expedited membarrier(2).
bool can_disown() noexcept;

// Of one shape, with the mutex held.
struct SlabAllocator::List {
  Slab* first = nullptr;  // without an owner and with a free block; those in use come first
  Slab* last = nullptr;
  Slab* spare = nullptr;     // at most one of them is kept though it is empty
  Slab* returned = nullptr;  // slots whose slab went back, to be made again
  std::uint32_t unmade = 0;  // the first slot that never had a slab
};

}  // namespace gpupool

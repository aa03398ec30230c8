// Calls of the slab allocator for many blocks at once.
#include <algorithm>
#include <string>

#include "memory/slab.h"

namespace gpupool {

void SlabAllocator::allocate_many(std::size_t shape, std::span<BlockHandle> handles) {
  std::size_t done = 0;
  try {
    for (; done < handles.size(); ++done) handles[done] = allocate(shape);
  } catch (...) {
    // What they took of the last slab goes first.
    while (done > 0) free(handles[--done]);
    throw;
  }
}

void SlabAllocator::free_many(std::span<const BlockHandle> handles) {
  std::vector<BlockHandle> sorted(handles.begin(), handles.end());
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) throw StaleBlock(name_of(*twice), "is named twice");
  for (const BlockHandle handle : handles) static_cast<void>(address_of(handle));
  for (const BlockHandle handle : handles) free(handle);
}

void SlabAllocator::addresses_of(std::span<const BlockHandle> handles,
                                 std::span<DevicePtr> addresses) const {
  if (handles.size() != addresses.size()) {
    throw UsageError("there is room for " + std::to_string(addresses.size()) + " addresses of " +
                     std::to_string(handles.size()) + " blocks");
  }
  for (const BlockHandle handle : handles) static_cast<void>(address_of(handle));
  for (std::size_t i = 0; i < handles.size(); ++i) addresses[i] = address_of(handles[i]);
}

}  // namespace gpupool

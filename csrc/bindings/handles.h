// A model and its regions as Python has them.
#pragma once

#include <memory>
#include <vector>

#include "bindings/bindings.h"
#include "swap/swap.h"

namespace gpupool::bindings {

// A model and its driver; a region remembers both so that it can speak for itself.
struct Memory {
  DriverPtr driver;
  std::shared_ptr<ModelMemory> memory;
};

struct RegionHandle {
  DriverPtr driver;
  std::shared_ptr<ModelMemory> memory;
  RegionPtr region;
};

// The host image as a writable buffer, which keeps it: the region may let go of it meanwhile.
struct ImageBuffer {
  RegionPtr region;
  std::shared_ptr<HostMemory> image;
};

// What the driver calls these pages.
inline std::vector<PageHandle> handles_of(const std::vector<PagePtr>& pages) {
  std::vector<PageHandle> handles;
  handles.reserve(pages.size());
  for (const PagePtr& page : pages) handles.push_back(page->handle());
  return handles;
}

// The rest of what a region has, for other libraries.
void bind_views(py::class_<RegionHandle>& region);

}  // namespace gpupool::bindings

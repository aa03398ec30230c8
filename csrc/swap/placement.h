// Which page goes where when a model comes in: clean pages where zeros are wanted.
#pragma once

#include <cstddef>
#include <vector>

#include "image/image.h"
#include "memory/memory.h"

namespace gpupool {

// The pages of one region in order, and what of it is still to be zeroed.
struct Placed {
  std::vector<PagePtr> pages;
  std::vector<Run> zeros;
};

// Gives each region its pages. `gaps` has, for each, the runs of bytes that must read as zeros and
// `counts` its number of pages. The first `clean` pages of all read as zeros already: they go
// behind gaps as far as they last. Where `given` has a page of a region, by its place, it goes
// there, and is not to be zeroed. `pages` are as many as the counts add up to, less those given.
std::vector<Placed> place(const std::vector<PagePtr>& pages, std::size_t clean,
                          const std::vector<std::vector<Run>>& gaps,
                          const std::vector<std::size_t>& counts, std::size_t page_bytes,
                          const std::vector<std::vector<PagePtr>>& given = {});

}  // namespace gpupool

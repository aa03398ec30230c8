// A pool and models behind an observer that is traced.
#pragma once

#include "observed_bench.h"

namespace gpupool {

// Models of three pages.
struct Traced : Observed {
  explicit Traced(DriverPtr beneath = open_bare_test_driver()) : Observed(std::move(beneath)) {}
  struct Owner {
    Owner(Traced& traced, OwnerId id) : traced(traced), id(id) {
      region = memory.add_region(Tag::weights, 2 * page_bytes, -1);
      memory.add_region(Tag::runtime, 4096, -1);
    }
    SwapReport swap_in() {
      std::vector<PagePtr> pages;
      for (const PageId page : traced.pool.acquire(id, 3)) pages.push_back(traced.pool.page(page));
      return memory.swap_in(std::move(pages));
    }
    SwapReport swap_out() {
      const SwapReport report = memory.swap_out();
      traced.pool.give_back_all(id);
      return report;
    }
    Traced& traced;
    OwnerId id;
    // One stream in, so that the next wait is for what was put there.
    ModelMemory memory{traced.driver, page_bytes, mib / 2, 1};
    RegionPtr region;
  };
  PagePool pool{driver, 6 * page_bytes, page_bytes};
};

}  // namespace gpupool

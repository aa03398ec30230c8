#include "memory/page_slabs.h"

#include <string>
#include <utility>

namespace gpupool {

PageSlabs::PageSlabs(DriverPtr driver, std::shared_ptr<PagePool> pool, OwnerId owner,
                     std::size_t pages_per_slab)
    : driver_(std::move(driver)),
      pool_(std::move(pool)),
      owner_(owner),
      pages_per_slab_(pages_per_slab) {
  if (pages_per_slab == 0) throw UsageError("a slab needs at least one page");
}

PageSlabs::~PageSlabs() {
  for (Runs* runs : {&runs_, &idle_}) {
    for (auto& [address, run] : *runs) {
      run.mapping.reset();
      give_back(run.pages);
    }
  }
  give_back(stray_);
}

std::size_t PageSlabs::slab_bytes() const noexcept { return pages_per_slab_ * pool_->page_bytes(); }

// What cannot be given back for want of memory stays in `pages`.
void PageSlabs::give_back(std::vector<PageId>& pages) noexcept {
  try {
    pool_->give_back(owner_, pages);
    pages.clear();
  } catch (...) {
  }
}

DevicePtr PageSlabs::acquire() {
  if (!idle_.empty()) {
    idle_.begin()->second.mapping->map();
    return runs_.insert(idle_.extract(idle_.begin())).position->first;
  }
  Run run;
  run.pages = stray_.empty() ? pool_->acquire(owner_, pages_per_slab_) : std::exchange(stray_, {});
  try {
    std::vector<PagePtr> pages;
    pages.reserve(run.pages.size());
    for (const PageId id : run.pages) pages.push_back(pool_->page(id));
    const auto reservation = std::make_shared<Reservation>(driver_, slab_bytes());
    run.mapping = std::make_unique<Mapping>(driver_, reservation, std::move(pages));
    run.mapping->map();
    const DevicePtr address = reservation->address();
    runs_.emplace(address, std::move(run));
    return address;
  } catch (...) {
    run.mapping.reset();  // unmapped before the pages can be anybody else's
    give_back(run.pages);
    stray_ = std::move(run.pages);
    throw;
  }
}

void PageSlabs::release(DevicePtr address) {
  const auto at = runs_.find(address);
  if (at == runs_.end()) throw UsageError("no slab begins at " + std::to_string(address));
  at->second.mapping->unmap();
  auto node = runs_.extract(at);
  give_back(node.mapped().pages);
  if (!node.mapped().pages.empty()) idle_.insert(std::move(node));
}

}  // namespace gpupool

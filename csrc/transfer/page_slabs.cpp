#include "transfer/page_slabs.h"

#include <algorithm>
#include <string>
#include <utility>

namespace gpupool {

PageSlabs::PageSlabs(DriverPtr driver, std::shared_ptr<PagePool> pool, OwnerId owner,
                     std::size_t pages_per_slab)
    : driver_(std::move(driver)),
      pool_(std::move(pool)),
      owner_(owner),
      pages_per_slab_(pages_per_slab),
      stream_(driver_, pool_->page_bytes()) {
  if (pages_per_slab == 0) throw UsageError("a slab needs at least one page");
}

PageSlabs::~PageSlabs() {
  if (!runs_.empty() && !device_ended(*driver_)) {
    while (!runs_.empty()) PageSlabs::abandon(runs_.begin()->first);
  }
  idle_.merge(runs_);
  discard_idle();
  for (auto& [address, run] : idle_) {
    if (run.filling && !stream_.ended()) run.mapping->abandon();
    run.filling = false;
  }
  discard_idle();
  for (auto& [address, run] : idle_) {
    if (run.mapping) run.mapping->abandon();  // the driver refuses to unmap it
  }
  discard_idle();
}

std::size_t PageSlabs::slab_bytes() const noexcept { return pages_per_slab_ * pool_->page_bytes(); }

DevicePtr PageSlabs::acquire() {
  if (idle_.empty()) {
    auto reservation = std::make_shared<const Reservation>(driver_, slab_bytes());
    const DevicePtr address = reservation->address();
    idle_.emplace(address, Run{std::move(reservation), {}, nullptr});
  }
  const auto run = idle_.begin();
  try {
    make_ready(run->second);
  } catch (...) {
    discard_idle();
    throw;
  }
  return runs_.insert(idle_.extract(run)).position->first;
}

// Gives it what of pages, mapping and zeros it has not got yet.
void PageSlabs::make_ready(Run& run) {
  if (run.pages.empty()) run.pages = pool_->acquire(owner_, pages_per_slab_);
  if (!run.mapping) {
    std::vector<PagePtr> pages;
    pages.reserve(run.pages.size());
    run.zeros = true;
    for (const PageId id : run.pages) {
      pages.push_back(pool_->page(id));
      run.zeros = run.zeros && pool_->is_clean(id);
    }
    run.mapping = std::make_unique<Mapping>(driver_, run.reservation, std::move(pages));
  }
  run.mapping->map();
  if (!run.zeros) {
    run.filling = true;
    stream_.fill(run.reservation->address(), 0, slab_bytes());
    stream_.synchronize();
    run.filling = false;
  }
}

// Unmapped before their pages can be anybody else's. Where that fails they stay, to be used first.
void PageSlabs::discard_idle() noexcept {
  for (auto next = idle_.begin(); next != idle_.end();) {
    auto& [reservation, pages, mapping, zeros, filling] = next->second;
    try {
      if (filling) stream_.synchronize();
      filling = false;
      if (mapping) mapping->unmap();
      pool_->give_back(owner_, pages);
      next = idle_.erase(next);
    } catch (...) {
      ++next;
    }
  }
}

void PageSlabs::release(DevicePtr address) {
  const auto at = runs_.find(address);
  if (at == runs_.end()) throw UsageError("no slab begins at " + std::to_string(address));
  at->second.mapping->unmap();
  at->second.zeros = false;
  idle_.insert(runs_.extract(at));
  discard_idle();
}

bool PageSlabs::ended() noexcept { return device_ended(*driver_); }

void PageSlabs::abandon(DevicePtr address) noexcept {
  const auto at = runs_.find(address);
  if (at == runs_.end()) return;
  at->second.mapping->abandon();
  try {
    pool_->give_back(owner_, at->second.pages);  // which withholds them
  } catch (...) {
    // Without memory for that they stay this owner's: nobody gets them either.
  }
  runs_.erase(at);
}

}  // namespace gpupool

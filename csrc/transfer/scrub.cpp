#include "transfer/scrub.h"

#include <algorithm>
#include <utility>

namespace gpupool {
namespace {

std::size_t at_least_one(std::size_t pages) {
  if (pages == 0) throw UsageError("a scrubber takes at least one page at a time");
  return pages;
}

}  // namespace

Scrubber::Scrubber(DriverPtr driver, std::shared_ptr<PagePool> pool, std::size_t pages_at_once)
    : driver_(std::move(driver)),
      pool_(std::move(pool)),
      pages_at_once_(at_least_one(pages_at_once)),
      reservation_(
          std::make_shared<const Reservation>(driver_, pages_at_once_ * pool_->page_bytes())),
      stream_(driver_, pages_at_once_ * pool_->page_bytes()) {
  withheld_.reserve(pages_at_once_);  // so that withholding cannot fail
}

Scrubber::~Scrubber() {
  if (!mapping_) return;
  if (stream_.ended()) {
    try {
      mapping_->unmap();
    } catch (...) {
      // As it ends the mapping tries once more.
    }
  } else {
    mapping_->abandon();
  }
  mapping_.reset();
  // But for those that stay mapped: they are in doubt.
  pool_->release(withheld_);
}

// Lets go of what an earlier failure left.
void Scrubber::let_go() {
  if (!mapping_) return;
  stream_.synchronize();
  mapping_->unmap();
  mapping_.reset();
  pool_->release(withheld_);
  withheld_.clear();
}

// Zeroes at most pages_at_once_ pages. If that fails and cannot be undone they are withheld.
void Scrubber::zero(std::span<const PageId> pages) {
  let_go();
  std::vector<PagePtr> physical;
  physical.reserve(pages.size());
  for (const PageId id : pages) physical.push_back(pool_->page(id));
  mapping_.emplace(driver_, reservation_, std::move(physical));
  try {
    mapping_->map();
    stream_.fill(reservation_->address(), 0, pages.size() * pool_->page_bytes());
    stream_.synchronize();
    mapping_->unmap();
    mapping_.reset();
  } catch (...) {
    try {
      let_go();
    } catch (...) {
      withheld_.assign(pages.begin(), pages.end());
      pool_->withhold(withheld_);
    }
    throw;
  }
}

void Scrubber::settle() {
  std::lock_guard lock(mutex_);
  let_go();
}

std::size_t Scrubber::scrub_free() {
  std::lock_guard lock(mutex_);
  let_go();
  const std::vector<PageId> pages = pool_->begin_scrub(pages_at_once_);
  if (pages.empty()) return 0;
  try {
    zero(pages);
  } catch (...) {
    if (withheld_.empty()) pool_->end_scrub(pages, false);
    throw;
  }
  pool_->end_scrub(pages, true);
  return pages.size();
}

void Scrubber::scrub_owned(OwnerId owner, std::span<const PageId> pages) {
  std::lock_guard lock(mutex_);
  let_go();
  pool_->begin_scrub_owned(owner, pages);
  while (!pages.empty()) {
    const auto some = pages.first(std::min(pages_at_once_, pages.size()));
    const auto rest = pages.subspan(some.size());
    try {
      zero(some);
    } catch (...) {
      if (withheld_.empty()) pool_->end_scrub_owned(some, false);
      pool_->end_scrub_owned(rest, false);
      throw;
    }
    pool_->end_scrub_owned(some, true);
    pages = rest;
  }
}

}  // namespace gpupool

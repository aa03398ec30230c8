#include <algorithm>
#include <bit>
#include <set>
#include <string>
#include <utility>

#include "memory/memory.h"

namespace gpupool {

Page::Page(DriverPtr driver, std::size_t bytes) : driver_(std::move(driver)), bytes_(bytes) {}

Page::~Page() {
  if (handle_ != 0) static_cast<void>(driver_->page_release(handle_));
}

// In both, the owner exists before there is a handle that could be lost.
PagePtr Page::create(DriverPtr driver, std::size_t bytes) {
  const std::shared_ptr<Page> page(new Page(driver, bytes));
  GPUPOOL_CALL(driver, page_create, &page->handle_, bytes);
  return page;
}

PagePtr Page::import(DriverPtr driver, int fd, std::size_t bytes) {
  const std::shared_ptr<Page> page(new Page(driver, bytes));
  GPUPOOL_CALL(driver, page_import, &page->handle_, fd);
  return page;
}

int Page::export_fd() const {
  int fd = -1;
  GPUPOOL_CALL(driver_, page_export, &fd, handle_);
  return fd;
}

PagePool::PagePool(DriverPtr driver, std::size_t budget_bytes, std::size_t page_bytes)
    : driver_(std::move(driver)), page_bytes_(page_bytes) {
  std::size_t granularity = 0;
  GPUPOOL_CALL(driver_, page_granularity, &granularity);
  if (!std::has_single_bit(page_bytes) || page_bytes % granularity != 0) {
    throw UsageError("page size " + std::to_string(page_bytes) +
                     " must be a power of two and a multiple of the device's " +
                     std::to_string(granularity) + " bytes");
  }
  slots_ = budget_bytes / page_bytes;
  if (slots_ == 0) {
    throw UsageError("budget of " + std::to_string(budget_bytes) +
                     " bytes does not hold one page of " + std::to_string(page_bytes) + " bytes");
  }
  created_.reserve(slots_);  // so that a page created is a page recorded
  free_.reserve(slots_);
}

std::vector<PageId> PagePool::acquire(OwnerId owner, std::size_t count) {
  std::lock_guard lock(mutex_);
  const std::size_t available = free_.size() + slots_ - created_.size();
  if (count > available) {
    throw UsageError(std::to_string(count) + " pages asked for, " + std::to_string(available) +
                     " are free");
  }
  std::vector<PageId> granted;
  granted.reserve(count);
  while (free_.size() < count) {
    PagePtr page = Page::create(driver_, page_bytes_);  // pages made so far stay free on failure
    created_.push_back(Slot{std::move(page)});
    free_.push_back(static_cast<PageId>(created_.size() - 1));
  }
  for (std::size_t i = 0; i < count; ++i) {
    const PageId id = free_.back();
    free_.pop_back();
    created_[id].owner = owner;
    created_[id].owned = true;
    granted.push_back(id);
  }
  return granted;
}

void PagePool::give_back(OwnerId owner, std::span<const PageId> pages) {
  std::lock_guard lock(mutex_);
  const std::set<PageId> distinct(pages.begin(), pages.end());
  const bool all_owned = std::all_of(distinct.begin(), distinct.end(), [&](PageId id) {
    return id < created_.size() && created_[id].owned && created_[id].owner == owner;
  });
  if (!all_owned || distinct.size() != pages.size()) {
    throw UsageError("a page given back is not held by its giver");
  }
  for (const PageId id : pages) {
    created_[id].owned = false;
    free_.push_back(id);
  }
}

std::vector<PageId> PagePool::give_back_all(OwnerId owner) {
  const std::vector<PageId> pages = owned(owner);
  give_back(owner, pages);
  return pages;
}

PagePtr PagePool::page(PageId id) const {
  std::lock_guard lock(mutex_);
  if (id >= created_.size()) throw UsageError("there is no page " + std::to_string(id));
  return created_[id].page;
}

std::vector<PageId> PagePool::owned(OwnerId owner) const {
  std::lock_guard lock(mutex_);
  std::vector<PageId> pages;
  for (PageId id = 0; id < created_.size(); ++id) {
    if (created_[id].owned && created_[id].owner == owner) pages.push_back(id);
  }
  return pages;
}

std::size_t PagePool::free_pages() const {
  std::lock_guard lock(mutex_);
  return free_.size() + slots_ - created_.size();
}

std::size_t PagePool::created_pages() const {
  std::lock_guard lock(mutex_);
  return created_.size();
}

}  // namespace gpupool

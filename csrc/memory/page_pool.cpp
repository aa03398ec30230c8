#include <algorithm>
#include <bit>
#include <exception>
#include <limits>
#include <set>
#include <string>
#include <utility>

#include "memory/memory.h"

namespace gpupool {
namespace {

constexpr std::size_t pages_max = std::size_t{1} << 24;  // 32 TiB of the smallest there are

}  // namespace

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
  if (slots_ > pages_max) {
    throw UsageError("budget of " + std::to_string(budget_bytes) + " bytes makes " +
                     std::to_string(slots_) + " pages of " + std::to_string(page_bytes) +
                     " bytes, and " + std::to_string(pages_max) +
                     " are the most: use larger pages");
  }
  // So that a page created is a page recorded, and putting one back cannot fail.
  created_.reserve(slots_);
  clean_.reserve(slots_);
  dirty_.reserve(slots_);
}

void PagePool::put_free(PageId id, bool clean) noexcept {
  Slot& slot = created_[id];
  slot.clean = clean;
  slot.state = slot.page->in_doubt() ? State::withheld : State::free;
  if (slot.state == State::free) (clean ? clean_ : dirty_).push_back(id);
}

void PagePool::create_one(std::unique_lock<std::mutex>& lock) {
  ++creating_;
  lock.unlock();
  PagePtr page;
  std::exception_ptr failed;
  try {
    page = Page::create(driver_, page_bytes_);
  } catch (...) {
    failed = std::current_exception();
  }
  lock.lock();
  --creating_;
  changed_.notify_all();
  if (failed) std::rethrow_exception(failed);
  created_.push_back(Slot{std::move(page)});
  // What the device puts into fresh memory is its own business.
  put_free(static_cast<PageId>(created_.size() - 1), false);
}

void PagePool::create_ahead(std::size_t count) {
  std::unique_lock lock(mutex_);
  if (count > slots_) {
    throw UsageError(std::to_string(count) + " pages to be created ahead, but the budget has " +
                     std::to_string(slots_));
  }
  while (created_.size() < count) {
    if (created_.size() + creating_ < count) {
      create_one(lock);
    } else {
      changed_.wait(lock);
    }
  }
}

std::vector<PageId> PagePool::acquire(OwnerId owner, std::size_t count) {
  std::vector<PageId> granted;
  std::unique_lock lock(mutex_);
  while (true) {
    const std::size_t ready = clean_.size() + dirty_.size();
    const std::size_t available = ready + scrubbing_ + uncreated();
    if (count > available) {
      throw UsageError(std::to_string(count) + " pages asked for, " + std::to_string(available) +
                       " are free");
    }
    if (ready >= count) break;
    if (ready + scrubbing_ + creating_ < count) {
      create_one(lock);  // pages made so far stay free on failure
    } else {
      changed_.wait(lock);
    }
  }
  granted.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    std::vector<PageId>& from = clean_.empty() ? dirty_ : clean_;
    const PageId id = from.back();
    from.pop_back();
    created_[id].owner = owner;
    created_[id].state = State::owned;
    granted.push_back(id);
  }
  return granted;
}

void PagePool::check_owned(OwnerId owner, std::span<const PageId> pages) const {
  const std::set<PageId> distinct(pages.begin(), pages.end());
  const bool all_owned = std::all_of(distinct.begin(), distinct.end(), [&](PageId id) {
    return id < created_.size() && created_[id].state == State::owned && holds(created_[id], owner);
  });
  if (!all_owned || distinct.size() != pages.size()) {
    throw UsageError(
        "a page is not held by its owner, is being scrubbed for it, or is named twice");
  }
}

void PagePool::give_back(OwnerId owner, std::span<const PageId> pages) {
  std::lock_guard lock(mutex_);
  check_owned(owner, pages);
  for (const PageId id : pages) let_go(owner, id);
}

std::vector<PageId> PagePool::give_back_all(OwnerId owner) {
  std::lock_guard lock(mutex_);
  const std::vector<PageId> pages = owned_by(owner);
  check_owned(owner, pages);
  for (const PageId id : pages) let_go(owner, id);
  return pages;
}

bool PagePool::holds(const Slot& slot, OwnerId owner) {
  return slot.owner == owner ||
         std::find(slot.others.begin(), slot.others.end(), owner) != slot.others.end();
}

void PagePool::let_go(OwnerId owner, PageId id) noexcept {
  Slot& slot = created_[id];
  if (slot.others.empty()) {
    put_free(id, false);
    return;
  }
  if (slot.owner == owner) {
    slot.owner = slot.others.back();
    slot.others.pop_back();
  } else {
    std::erase(slot.others, owner);
  }
}

void PagePool::share(OwnerId owner, std::span<const PageId> pages) {
  std::lock_guard lock(mutex_);
  std::set<PageId> seen;
  for (const PageId id : pages) {
    const bool is_owned = id < created_.size() && created_[id].state == State::owned;
    if (!is_owned || holds(created_[id], owner) || !seen.insert(id).second) {
      throw UsageError("a page to be shared is not held by others alone, or is named twice");
    }
  }
  // What can fail comes first.
  for (const PageId id : pages) created_[id].others.reserve(created_[id].others.size() + 1);
  for (const PageId id : pages) created_[id].others.push_back(owner);
}

std::vector<PageId> PagePool::begin_scrub(std::size_t count) {
  std::vector<PageId> taken;
  std::lock_guard lock(mutex_);
  taken.reserve(std::min(count, dirty_.size()));
  while (!dirty_.empty() && taken.size() < count) {
    taken.push_back(dirty_.back());
    dirty_.pop_back();
    created_[taken.back()].state = State::scrubbing;
  }
  scrubbing_ += taken.size();
  return taken;
}

void PagePool::end_scrub(std::span<const PageId> pages, bool clean) noexcept {
  std::lock_guard lock(mutex_);
  for (const PageId id : pages) put_free(id, clean);
  scrubbing_ -= pages.size();
  changed_.notify_all();
}

void PagePool::begin_scrub_owned(OwnerId owner, std::span<const PageId> pages) {
  std::lock_guard lock(mutex_);
  check_owned(owner, pages);
  const auto is_shared = [&](PageId id) { return !created_[id].others.empty(); };
  if (std::any_of(pages.begin(), pages.end(), is_shared)) {
    throw UsageError("a page that others hold as well is not scrubbed");
  }
  for (const PageId id : pages) created_[id].state = State::owned_scrubbing;
}

void PagePool::end_scrub_owned(std::span<const PageId> pages, bool clean) noexcept {
  std::lock_guard lock(mutex_);
  for (const PageId id : pages) {
    created_[id].state = State::owned;
    created_[id].clean |= clean;
  }
}

void PagePool::withhold(std::span<const PageId> pages) noexcept {
  std::lock_guard lock(mutex_);
  for (const PageId id : pages) {
    scrubbing_ -= created_[id].state == State::scrubbing;
    created_[id].state = State::withheld;
  }
  changed_.notify_all();  // who waits for them waits in vain
}

void PagePool::release(std::span<const PageId> pages) noexcept {
  std::lock_guard lock(mutex_);
  for (const PageId id : pages) put_free(id, false);
}

PagePtr PagePool::page(PageId id) const {
  std::lock_guard lock(mutex_);
  if (id >= created_.size()) throw UsageError("there is no page " + std::to_string(id));
  return created_[id].page;
}

bool PagePool::is_clean(PageId id) const {
  std::lock_guard lock(mutex_);
  if (id >= created_.size()) throw UsageError("there is no page " + std::to_string(id));
  return created_[id].clean;
}

std::vector<PageId> PagePool::owned_by(OwnerId owner) const {
  std::vector<PageId> pages;
  PageId id = 0;
  for (const Slot& slot : created_) {
    const bool held = slot.state == State::owned || slot.state == State::owned_scrubbing;
    if (held && holds(slot, owner)) pages.push_back(id);
    ++id;
  }
  return pages;
}

std::vector<PageId> PagePool::owned(OwnerId owner) const {
  std::lock_guard lock(mutex_);
  return owned_by(owner);
}

std::size_t PagePool::count(State state) const {
  return static_cast<std::size_t>(std::count_if(
      created_.begin(), created_.end(), [state](const Slot& slot) { return slot.state == state; }));
}

std::size_t PagePool::free_pages() const {
  std::lock_guard lock(mutex_);
  return clean_.size() + dirty_.size() + scrubbing_ + uncreated();
}

std::size_t PagePool::created_pages() const {
  std::lock_guard lock(mutex_);
  return created_.size();
}

PoolStatistics PagePool::statistics() const {
  std::lock_guard lock(mutex_);
  PoolStatistics now;
  now.total = slots_;
  now.created = created_.size();
  now.clean = clean_.size();
  now.dirty = dirty_.size();
  now.scrubbing = count(State::scrubbing);
  now.withheld = count(State::withheld);
  now.owned = count(State::owned) + count(State::owned_scrubbing);
  return now;
}

}  // namespace gpupool

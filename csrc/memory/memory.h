// Physical pages and the addresses they are mapped at, each as an owner that cleans up after
// itself. A mapping holds its reservation and its pages, so teardown is in order by construction.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "driver/driver.h"

namespace gpupool {

// Physical device memory of one fixed size.
class Page {
 public:
  // Throws DriverError.
  static std::shared_ptr<const Page> create(const DriverPtr& driver, std::size_t bytes);
  // A page another process exported; `fd` stays the caller's. `bytes` is what the exporter says:
  // the CUDA driver has no call that tells. Throws DriverError.
  static std::shared_ptr<const Page> import(const DriverPtr& driver, int fd, std::size_t bytes);
  ~Page();
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;

  // A new descriptor, owned by the caller. Throws DriverError.
  [[nodiscard]] int export_fd() const;
  [[nodiscard]] const DriverPtr& driver() const noexcept { return driver_; }
  [[nodiscard]] PageHandle handle() const noexcept { return handle_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  // Something in flight, or at an address it stays mapped at, may touch it, and nobody can say
  // until when: no pool grants it again.
  void put_in_doubt() const noexcept { in_doubt_ = true; }
  [[nodiscard]] bool in_doubt() const noexcept { return in_doubt_; }

 private:
  Page(DriverPtr driver, std::size_t bytes);
  DriverPtr driver_;
  PageHandle handle_ = 0;
  std::size_t bytes_;
  mutable std::atomic<bool> in_doubt_{false};
};

using PagePtr = std::shared_ptr<const Page>;
using PageId = std::uint32_t;
using OwnerId = std::uint64_t;

// What of a budget is where. The figures of the pages add up to `created`.
struct PoolStatistics {
  std::size_t total = 0;
  std::size_t created = 0;
  std::size_t clean = 0;      // free, reading as zeros throughout
  std::size_t dirty = 0;      // free, with whatever was left in them
  std::size_t scrubbing = 0;  // being made clean; free as soon as that is done
  std::size_t withheld = 0;   // kept from everybody after a failure
  std::size_t owned = 0;
};

// The pages of one budget and who has them. Created on first use or ahead, kept until the pool is
// gone. It moves no bytes: a Scrubber makes pages clean and says so here.
class PagePool {
 public:
  // Throws UsageError unless page_bytes is a power of two, a multiple of the driver's granularity
  // and within the budget, which may have as many pages as there are ids.
  PagePool(DriverPtr driver, std::size_t budget_bytes, std::size_t page_bytes);

  // Makes pages now rather than at their first use, until there are `count`. Throws UsageError if
  // the budget has fewer, or DriverError; what was made by then stays.
  void create_ahead(std::size_t count);
  // `count` pages for `owner`, all or none, clean ones first. Waits for pages being scrubbed where
  // there are not enough others. Throws UsageError if fewer are free, DriverError if the device
  // cannot create them; either way the owner has what it had.
  std::vector<PageId> acquire(OwnerId owner, std::size_t count);
  // Gives `owner` pages that others hold, and go on to hold: each is free again once all have given
  // it back. Throws UsageError, and nothing has changed, unless each is held by others alone, named
  // once, and not being scrubbed.
  void share(OwnerId owner, std::span<const PageId> pages);
  // Throws UsageError, and gives nothing back, unless `owner` holds every one, named once, and none
  // is being scrubbed for it. What is in doubt is withheld.
  void give_back(OwnerId owner, std::span<const PageId> pages);
  // Everything `owner` holds at this moment. Throws as give_back() does.
  std::vector<PageId> give_back_all(OwnerId owner);

  // Up to `count` dirty pages to be scrubbed; each must be ended by end_scrub() or withhold().
  std::vector<PageId> begin_scrub(std::size_t count);
  void end_scrub(std::span<const PageId> pages, bool clean) noexcept;
  // Pages that `owner` holds and has not mapped: they cannot be given back until they are ended by
  // end_scrub_owned() or withhold(). Throws UsageError unless it holds every one, named once.
  void begin_scrub_owned(OwnerId owner, std::span<const PageId> pages);
  void end_scrub_owned(std::span<const PageId> pages, bool clean) noexcept;
  // Nobody gets these pages, owned or being scrubbed, until release(): something in flight may
  // still touch them.
  void withhold(std::span<const PageId> pages) noexcept;
  void release(std::span<const PageId> pages) noexcept;

  [[nodiscard]] PagePtr page(PageId id) const;  // throws UsageError if never created
  // Whether it read as zeros when it was acquired, or does now if it is free.
  [[nodiscard]] bool is_clean(PageId id) const;  // throws UsageError if never created
  [[nodiscard]] std::vector<PageId> owned(OwnerId owner) const;
  // Those being scrubbed or created included.
  [[nodiscard]] std::size_t free_pages() const;
  [[nodiscard]] std::size_t created_pages() const;
  [[nodiscard]] PoolStatistics statistics() const;
  [[nodiscard]] std::size_t total_pages() const noexcept { return slots_; }
  [[nodiscard]] std::size_t page_bytes() const noexcept { return page_bytes_; }

 private:
  enum class State { free, scrubbing, withheld, owned, owned_scrubbing };
  struct Slot {
    PagePtr page;
    OwnerId owner = 0;
    std::vector<OwnerId> others = {};  // who have it as well
    State state = State::free;
    bool clean = false;
  };
  // With mutex_ held; create_one() lets it go while the device makes the page, so that others get
  // answers meanwhile.
  void create_one(std::unique_lock<std::mutex>& lock);
  void put_free(PageId id, bool clean) noexcept;
  void let_go(OwnerId owner, PageId id) noexcept;
  [[nodiscard]] static bool holds(const Slot& slot, OwnerId owner);
  void check_owned(OwnerId owner, std::span<const PageId> pages) const;
  [[nodiscard]] std::vector<PageId> owned_by(OwnerId owner) const;
  [[nodiscard]] std::size_t count(State state) const;
  [[nodiscard]] std::size_t uncreated() const noexcept { return slots_ - created_.size(); }

  DriverPtr driver_;
  std::size_t page_bytes_;
  std::size_t slots_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;  // pages are no longer being scrubbed or created
  std::vector<Slot> created_;
  std::size_t scrubbing_ = 0;
  std::size_t creating_ = 0;  // not in created_ yet
  // Free; the last one given back goes out first.
  std::vector<PageId> clean_;
  std::vector<PageId> dirty_;
};

// A range of device addresses that nothing else gets until this is gone.
class Reservation {
 public:
  Reservation(DriverPtr driver, std::size_t bytes);  // throws DriverError
  ~Reservation();
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;

  [[nodiscard]] DevicePtr address() const noexcept { return address_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  // Its addresses are never given back: something stays mapped there.
  void keep() const noexcept { kept_ = true; }

 private:
  DriverPtr driver_;
  DevicePtr address_ = 0;
  std::size_t bytes_;
  mutable std::atomic<bool> kept_{false};
};

using ReservationPtr = std::shared_ptr<const Reservation>;

// Pages of one size filling a reservation from its start, readable and writable once mapped.
class Mapping {
 public:
  // Maps nothing yet. Throws UsageError unless the pages are of one size and fit the reservation.
  Mapping(DriverPtr driver, ReservationPtr reservation, std::vector<PagePtr> pages);
  // Unmaps; what the driver refuses to unmap is left as abandon() does.
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  // Puts the pages at their addresses; they keep their content when mapped again. Throws
  // DriverError; what was mapped until then is unmapped, or left to unmap() if that fails too.
  void map();
  // Removes what is mapped, also what a failed map() left. Throws DriverError and stays as it was.
  // Nothing may be in flight that touches the range.
  void unmap();
  // More pages behind those of a mapped one, mapped at once. Throws UsageError unless they fit,
  // or DriverError: it is as before then, or has those that could not be unmapped again on top,
  // until shrink() or unmap().
  void extend(const std::vector<PagePtr>& more);
  // Unmaps all but the first `pages` of a mapped one, at least one, and returns them. Throws
  // DriverError and stays as it was. Nothing may be in flight that touches them.
  std::vector<PagePtr> shrink(std::size_t pages);
  // Nothing can write to what is mapped any more, until it is mapped anew. Throws DriverError.
  // Nothing may be in flight that writes there.
  void make_read_only();
  // Leaves what is mapped as it is for ever, for its owner goes and something may still touch it:
  // the addresses are kept and the pages in doubt.
  void abandon() noexcept;
  // Whether all of it is mapped and may be touched.
  [[nodiscard]] bool mapped() const noexcept { return accessible_; }
  [[nodiscard]] const std::vector<PagePtr>& pages() const noexcept { return pages_; }

 private:
  void check_pages(const std::vector<PagePtr>& more) const;
  void map_from(std::size_t first);
  [[nodiscard]] std::size_t bytes() const noexcept { return pages_.size() * pages_[0]->bytes(); }
  DriverPtr driver_;
  ReservationPtr reservation_;
  std::vector<PagePtr> pages_;
  std::size_t mapped_bytes_ = 0;     // from the start
  std::size_t read_only_bytes_ = 0;  // of them, from the start
  bool accessible_ = false;
};

}  // namespace gpupool

// Physical pages and the addresses they are mapped at, each as an owner that cleans up after
// itself. A mapping holds its reservation and its pages, so teardown is in order by construction.
#pragma once

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
  static std::shared_ptr<const Page> create(DriverPtr driver, std::size_t bytes);
  // A page another process exported; `fd` stays the caller's. `bytes` is what the exporter says:
  // the CUDA driver has no call that tells. Throws DriverError.
  static std::shared_ptr<const Page> import(DriverPtr driver, int fd, std::size_t bytes);
  ~Page();
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;

  // A new descriptor, owned by the caller. Throws DriverError.
  [[nodiscard]] int export_fd() const;
  [[nodiscard]] PageHandle handle() const noexcept { return handle_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

 private:
  Page(DriverPtr driver, std::size_t bytes);
  DriverPtr driver_;
  PageHandle handle_ = 0;
  std::size_t bytes_;
};

using PagePtr = std::shared_ptr<const Page>;
using PageId = std::uint32_t;
using OwnerId = std::uint64_t;

// The pages of one budget and who has them. Created on first use, kept until the pool is gone.
class PagePool {
 public:
  // Throws UsageError unless page_bytes is a power of two, a multiple of the driver's granularity
  // and within the budget.
  PagePool(DriverPtr driver, std::size_t budget_bytes, std::size_t page_bytes);

  // `count` pages for `owner`, all or none. Throws UsageError if fewer are free, DriverError if
  // the device cannot create them; either way nothing has changed.
  std::vector<PageId> acquire(OwnerId owner, std::size_t count);
  // Throws UsageError, and gives nothing back, unless `owner` holds every one, named once.
  void give_back(OwnerId owner, std::span<const PageId> pages);
  // Everything `owner` holds.
  std::vector<PageId> give_back_all(OwnerId owner);

  [[nodiscard]] PagePtr page(PageId id) const;  // throws UsageError if never created
  [[nodiscard]] std::vector<PageId> owned(OwnerId owner) const;
  [[nodiscard]] std::size_t free_pages() const;
  [[nodiscard]] std::size_t created_pages() const;
  [[nodiscard]] std::size_t total_pages() const noexcept { return slots_; }
  [[nodiscard]] std::size_t page_bytes() const noexcept { return page_bytes_; }

 private:
  struct Slot {
    PagePtr page;
    OwnerId owner = 0;
    bool owned = false;
  };
  DriverPtr driver_;
  std::size_t page_bytes_;
  std::size_t slots_;
  mutable std::mutex mutex_;
  std::vector<Slot> created_;
  std::vector<PageId> free_;  // created and not owned; last one given back goes out first
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

 private:
  DriverPtr driver_;
  DevicePtr address_ = 0;
  std::size_t bytes_;
};

using ReservationPtr = std::shared_ptr<const Reservation>;

// Pages of one size filling a reservation from its start, readable and writable once mapped.
class Mapping {
 public:
  // Maps nothing yet. Throws UsageError unless the pages are of one size and fit the reservation.
  Mapping(DriverPtr driver, ReservationPtr reservation, std::vector<PagePtr> pages);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  // Puts the pages at their addresses; they keep their content when mapped again. Throws
  // DriverError; what was mapped until then is unmapped, or left to unmap() if that fails too.
  void map();
  // Removes what is mapped, also what a failed map() left. Throws DriverError and stays as it was.
  // Nothing may be in flight that touches the range.
  void unmap();
  // Whether all of it is mapped and may be touched.
  [[nodiscard]] bool mapped() const noexcept { return accessible_; }

 private:
  [[nodiscard]] std::size_t bytes() const noexcept { return pages_.size() * pages_[0]->bytes(); }
  DriverPtr driver_;
  ReservationPtr reservation_;
  std::vector<PagePtr> pages_;
  std::size_t mapped_bytes_ = 0;  // from the start
  bool accessible_ = false;
};

}  // namespace gpupool

// Slabs of device memory: pages of a pool, mapped.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "memory/memory.h"
#include "memory/slab.h"
#include "transfer/transfer.h"

namespace gpupool {

// Each slab is `pages_per_slab` pages of the pool, of `owner`, at an address of its own. It begins
// as zeros, whoever had its pages before.
class PageSlabs final : public SlabSource {
 public:
  // Throws UsageError if a slab has no page, or DriverError.
  PageSlabs(DriverPtr driver, std::shared_ptr<PagePool> pool, OwnerId owner,
            std::size_t pages_per_slab);
  // Waits for the device if there are slabs in use. What it cannot wait for or unmap stays mapped,
  // and its pages are withheld.
  ~PageSlabs() override;
  PageSlabs(const PageSlabs&) = delete;
  PageSlabs& operator=(const PageSlabs&) = delete;

  // Throws what PagePool::acquire() does, DriverError or std::bad_alloc.
  DevicePtr acquire() override;
  // Throws DriverError if the slab cannot be unmapped, UsageError if it is none.
  void release(DevicePtr run) override;
  [[nodiscard]] bool ended() noexcept override;
  void abandon(DevicePtr run) noexcept override;
  [[nodiscard]] std::size_t slab_bytes() const noexcept override;

 private:
  struct Run {
    ReservationPtr reservation;
    std::vector<PageId> pages;
    std::unique_ptr<Mapping> mapping;  // none before the first use
    bool zeros = false;
    bool filling = false;  // with zeros, perhaps still
  };
  using Runs = std::map<DevicePtr, Run>;
  void make_ready(Run& run);
  void discard_idle() noexcept;

  DriverPtr driver_;
  std::shared_ptr<PagePool> pool_;
  OwnerId owner_;
  std::size_t pages_per_slab_;
  Runs runs_;  // in use
  Runs idle_;  // what could not be given back, for want of memory or of an answer of the driver
  CopyStream stream_;
};

}  // namespace gpupool

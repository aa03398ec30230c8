// Zeroes pages of a pool on a stream of its own.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "memory/memory.h"
#include "transfer/transfer.h"

namespace gpupool {

// Maps pages at addresses of its own, a few at a time, fills them with zeros and unmaps them. Any
// thread may call. On a failure pages that something in flight may still touch are withheld from
// the pool, and given back by a later call: settle() does nothing else.
class Scrubber {
 public:
  // Throws UsageError if it is to take no page at a time, or DriverError.
  Scrubber(DriverPtr driver, std::shared_ptr<PagePool> pool, std::size_t pages_at_once);
  // Waits for what is in flight; what the driver does not let it wait for, or unmap, stays mapped
  // and withheld for good.
  ~Scrubber();
  Scrubber(const Scrubber&) = delete;
  Scrubber& operator=(const Scrubber&) = delete;

  // Scrubs dirty free pages, at most as many as it takes at a time; returns how many.
  // Throws DriverError; they are dirty as before then, or withheld.
  std::size_t scrub_free();
  // Scrubs pages that `owner` holds and has not mapped; it cannot give them back meanwhile. Throws
  // UsageError unless it holds them, or DriverError; some may be clean then, and those that are
  // withheld are no longer the owner's.
  void scrub_owned(OwnerId owner, std::span<const PageId> pages);
  // Gives the pool what is withheld from it. Throws DriverError while something in flight may
  // still touch that.
  void settle();

 private:
  void zero(std::span<const PageId> pages);
  void let_go();

  DriverPtr driver_;
  std::shared_ptr<PagePool> pool_;
  std::size_t pages_at_once_;
  std::mutex mutex_;
  ReservationPtr reservation_;
  std::optional<Mapping> mapping_;  // of what is being zeroed, or could not be let go
  std::vector<PageId> withheld_;
  CopyStream stream_;
};

}  // namespace gpupool

// A device that can be brought to a standstill: work is in flight, and it is not waited for.
#pragma once

#include <memory>
#include <optional>

#include "bench.h"
#include "driver/fault.h"
#include "hooked.h"
#include "ledger.h"
#include "memory/memory.h"

namespace gpupool {

inline constexpr std::size_t standstill_pages = 6;

// A stepped device on which a stream can be held, a pool, and what was taken back too early.
struct Standstill {
  explicit Standstill(std::uint64_t seed = 1)
      : device(host_device(open_stepped(seed, page_bytes))) {
    hooked->before = [this](DriverCall call) {
      if (call == hold_at && !hold) {
        hold_at.reset();
        CHECK_OK(device->hold(hooked->streams.at(held_stream), &hold));
      }
      const bool takes = call == DriverCall::unmap || call == DriverCall::host_unregister ||
                         call == DriverCall::address_free;
      if (takes && hold) ++taken_too_early;
    };
  }
  // Neither the stream nor the device is waited for, from now on.
  void refuse_to_wait() {
    for (const DriverCall call :
         {DriverCall::stream_synchronize, DriverCall::context_synchronize}) {
      plan->arm_call(call, 1, FaultPlan::every_call, Status::out_of_memory);
    }
  }
  std::vector<PagePtr> acquire(OwnerId owner, std::size_t count) {
    std::vector<PagePtr> got;
    for (const PageId id : pool->acquire(owner, count)) got.push_back(pool->page(id));
    return got;
  }
  // What was held runs now, on memory that must still be there.
  void check_kept(std::size_t withheld) {
    plan->disarm();
    CHECK_EQ(taken_too_early, 0);
    CHECK(device->pending() > 0);
    hold.reset();
    CHECK_OK(device->context_synchronize());
    CHECK_EQ(pool->statistics().withheld, withheld);
    CHECK_EQ(pool->statistics().owned, 0);
    CHECK_EQ(pool->acquire(99, standstill_pages - withheld).size(), standstill_pages - withheld);
    CHECK_THROWS(UsageError, pool->acquire(99, 1));
  }
  std::optional<DriverCall> hold_at;  // the stream is held before the next call of this kind
  std::size_t held_stream = 0;
  std::unique_ptr<host::Hold> hold;
  int taken_too_early = 0;
  std::shared_ptr<host::HostDriver> device;
  std::shared_ptr<Ledger> ledger = std::make_shared<Ledger>(device);
  std::shared_ptr<Hooked> hooked = std::make_shared<Hooked>(ledger);
  std::shared_ptr<FaultPlan> plan = std::make_shared<FaultPlan>();
  DriverPtr driver = with_faults(hooked, plan);
  std::shared_ptr<PagePool> pool =
      std::make_shared<PagePool>(driver, standstill_pages* page_bytes, page_bytes);
};

}  // namespace gpupool

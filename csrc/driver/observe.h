// Counts every driver call and what it moved or made, and shows it in a trace while one is on.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "driver/trace.h"
#include "driver/watch.h"

namespace gpupool {

struct CallCount {
  std::uint64_t calls = 0;
  std::uint64_t failures = 0;  // not_ready is none
  std::uint64_t ns = 0;        // spent inside
  bool operator==(const CallCount&) const = default;
};

// X(name): bytes that copies, fills and digests were asked for since the driver was opened, and
// what there is of it now.
#define GPUPOOL_OBSERVED_AMOUNTS(X)                                         \
  X(to_device_bytes)                                                        \
  X(to_host_bytes)                                                          \
  X(filled_bytes)                                                           \
  X(digested_bytes)                                                         \
  X(pages)            /* handles of physical memory, created or imported */ \
  X(reserved_bytes)   /* addresses */                                       \
  X(mapped_bytes)     /* of addresses with a page behind them */            \
  X(registered_bytes) /* pinned host memory */                              \
  X(streams)                                                                \
  X(events)

struct DriverStatistics {
  std::array<CallCount, std::size(driver_call_names)> calls{};
#define GPUPOOL_AMOUNT(name) std::uint64_t name = 0;
  GPUPOOL_OBSERVED_AMOUNTS(GPUPOOL_AMOUNT)
#undef GPUPOOL_AMOUNT
  bool operator==(const DriverStatistics&) const = default;
};

// What is known of one driver, also when it is gone. Thread safe.
class Observer {
 public:
  Observer() = default;
  Observer(const Observer&) = delete;
  Observer& operator=(const Observer&) = delete;

  // Each figure is exact; together they are those of one moment only while no call is made.
  [[nodiscard]] DriverStatistics statistics() const noexcept;

  // Shows what happens in `trace` until stop(). Throws UsageError while there is one already, or
  // when the driver is gone, and std::system_error when there is no thread for it.
  void start(std::shared_ptr<Trace> trace);
  // Idempotent. The trace may be one of several observers': closing it is its owner's.
  void stop() noexcept;
  [[nodiscard]] bool tracing() const noexcept { return tracing_.load(std::memory_order_relaxed); }
  // Something of the calling thread that a reader of the trace should see; nothing without a trace.
  void span(std::string_view name, std::int64_t begin_ns, std::int64_t end_ns,
            const Trace::Values& values) noexcept;

 private:
  friend class ObservedDriver;
  struct alignas(64) Count {
    std::atomic<std::uint64_t> calls{0}, failures{0}, ns{0};
  };
  void attach(Watcher* watcher);
  void detach() noexcept;
  std::shared_ptr<Trace> trace() const noexcept;

  std::array<Count, std::size(driver_call_names)> calls_;
#define GPUPOOL_AMOUNT(name) std::atomic<std::uint64_t> name##_{0};
  GPUPOOL_OBSERVED_AMOUNTS(GPUPOOL_AMOUNT)
#undef GPUPOOL_AMOUNT

  Watcher* watcher_ = nullptr;  // null: the driver is not there yet, or is gone
  std::shared_ptr<Trace> trace_;
  std::mutex switching_;      // start and stop, one at a time
  mutable std::mutex mutex_;  // of trace_
  const unsigned forks_ = fork_count();
  std::atomic<bool> tracing_{false};
  bool used_ = false;
};

// The same driver, observed. While nothing is traced each call makes one call of `inner`, and two
// of its clock. An observer is of one driver: throws UsageError for one that has been used.
DriverPtr with_observer(DriverPtr inner, std::shared_ptr<Observer> observer,
                        WatchMode mode = WatchMode::thread);
// Of a driver that with_observer gave; null of any other.
std::shared_ptr<Observer> observer_of(const Driver& driver);

}  // namespace gpupool

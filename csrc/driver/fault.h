// Fault injection at the seam: fail the n-th driver call, once or from then on.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "driver/driver.h"

namespace gpupool {

enum class DriverCall {
#define GPUPOOL_ENUMERATE(name, params, args, needs_context) name,
  GPUPOOL_DRIVER_CALLS(GPUPOOL_ENUMERATE)
#undef GPUPOOL_ENUMERATE
};

class FaultPlan {
 public:
  // The nth call from now (1 is the next) answers `code`; with `persistent` so do all after it.
  void arm(std::uint64_t nth, Status code, bool persistent);
  void disarm();
  [[nodiscard]] std::uint64_t injected() const;
  Status next(DriverCall call);

 private:
  mutable std::mutex mutex_;
  bool armed_ = false;
  bool persistent_ = false;
  std::uint64_t remaining_ = 0;
  std::uint64_t injected_ = 0;
  Status code_ = Status::unknown;
};

DriverPtr with_faults(DriverPtr inner, std::shared_ptr<FaultPlan> plan);

}  // namespace gpupool

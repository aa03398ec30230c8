// Fault injection at the seam: fail the n-th driver call, once or from then on.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "driver/driver.h"

namespace gpupool {

class FaultPlan {
 public:
  // The nth call from now (1 is the next) answers `code`; with `persistent` so do all after it.
  // Calls that give something back are left out unless `releases`: a destructor whose call is
  // refused can only leave the thing with the driver.
  void arm(std::uint64_t nth, Status code, bool persistent, bool releases = false);
  void disarm();
  // Since arm().
  [[nodiscard]] std::uint64_t injected() const;
  [[nodiscard]] std::uint64_t injected(DriverCall call) const;
  Status next(DriverCall call);

 private:
  mutable std::mutex mutex_;
  bool armed_ = false;
  bool persistent_ = false;
  bool releases_ = false;
  std::uint64_t remaining_ = 0;
  std::map<DriverCall, std::uint64_t> injected_;
  Status code_ = Status::unknown;
};

DriverPtr with_faults(DriverPtr inner, std::shared_ptr<FaultPlan> plan);

}  // namespace gpupool

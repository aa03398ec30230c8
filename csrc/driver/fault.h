// Fault injection at the seam: fail the n-th driver call, once or from then on, or have the process
// killed at it.
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
  // The process is killed (SIGKILL) just before the nth call from now, or with `after` just after
  // the nth that succeeds. All calls count.
  void arm_kill(std::uint64_t nth, bool after);
  void disarm();
  // Since arm().
  [[nodiscard]] std::uint64_t injected() const;
  [[nodiscard]] std::uint64_t injected(DriverCall call) const;
  Status next(DriverCall call);
  void returned(Status status);

 private:
  enum class Kill { no, before, after };
  void count_to_kill();

  mutable std::mutex mutex_;
  bool armed_ = false;
  Kill kill_ = Kill::no;
  bool persistent_ = false;
  bool releases_ = false;
  std::uint64_t remaining_ = 0;
  std::map<DriverCall, std::uint64_t> injected_;
  Status code_ = Status::unknown;
};

DriverPtr with_faults(DriverPtr inner, std::shared_ptr<FaultPlan> plan);

}  // namespace gpupool

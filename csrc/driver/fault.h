// Fault injection at the seam: fail the n-th driver call, of any kind or of one, once or from then
// on, or have the process killed at it.
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
  // `count` calls of one kind, from the nth from now on, answer `code`, also where they give
  // something back; every_call: for as long as the plan is armed. Several kinds may be armed,
  // beside what arm() has planned.
  static constexpr std::uint64_t every_call = ~std::uint64_t{0};
  void arm_call(DriverCall call, std::uint64_t nth, std::uint64_t count, Status code);
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
  struct OfOneKind {
    std::uint64_t before, count;
    Status code;
  };
  void count_to_kill();

  mutable std::mutex mutex_;
  bool armed_ = false;
  Kill kill_ = Kill::no;
  bool persistent_ = false;
  bool releases_ = false;
  std::uint64_t remaining_ = 0;
  std::map<DriverCall, OfOneKind> of_one_kind_;
  std::map<DriverCall, std::uint64_t> injected_;
  Status code_ = Status::unknown;
};

DriverPtr with_faults(DriverPtr inner, std::shared_ptr<FaultPlan> plan);

}  // namespace gpupool

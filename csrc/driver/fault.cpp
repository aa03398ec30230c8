// Wraps a driver and fails chosen calls, for tests of every error path.
#include "driver/fault.h"

#include <unistd.h>

#include <csignal>

namespace gpupool {
namespace {

class FaultDriver final : public Driver {
 public:
  FaultDriver(DriverPtr inner, std::shared_ptr<FaultPlan> plan)
      : inner_(std::move(inner)), plan_(std::move(plan)) {}

#define GPUPOOL_WRAP(name, params, args, needs_context) \
  Status name params noexcept override {                \
    const Status fault = plan_->next(DriverCall::name); \
    if (fault != Status::success) return fault;         \
    const Status status = inner_->name args;            \
    plan_->returned(status);                            \
    return status;                                      \
  }
  GPUPOOL_DRIVER_CALLS(GPUPOOL_WRAP)
#undef GPUPOOL_WRAP

  std::int64_t now_ns() const noexcept override { return inner_->now_ns(); }
  DeviceKind kind() const noexcept override { return inner_->kind(); }
  int ordinal() const noexcept override { return inner_->ordinal(); }
  std::string status_name(Status status) const override { return inner_->status_name(status); }

 private:
  DriverPtr inner_;
  std::shared_ptr<FaultPlan> plan_;
};

bool releases(DriverCall call) {
  switch (call) {
    case DriverCall::page_release:
    case DriverCall::address_free:
    case DriverCall::host_unregister:
    case DriverCall::stream_destroy:
    case DriverCall::event_destroy: return true;
    default: return false;
  }
}

}  // namespace

void FaultPlan::arm(std::uint64_t nth, Status code, bool persistent, bool releases) {
  std::lock_guard lock(mutex_);
  armed_ = true;
  kill_ = Kill::no;
  remaining_ = nth;
  code_ = code;
  persistent_ = persistent;
  releases_ = releases;
  of_one_kind_.clear();
  injected_.clear();
#define GPUPOOL_COUNT(name, params, args, needs_context) injected_[DriverCall::name] = 0;
  GPUPOOL_DRIVER_CALLS(GPUPOOL_COUNT)  // next() must not throw
#undef GPUPOOL_COUNT
}

void FaultPlan::arm_call(DriverCall call, std::uint64_t nth, std::uint64_t count, Status code) {
  std::lock_guard lock(mutex_);
  of_one_kind_[call] = {nth - 1, count, code};
  injected_.try_emplace(call, 0);
}

void FaultPlan::arm_kill(std::uint64_t nth, bool after) {
  std::lock_guard lock(mutex_);
  armed_ = false;
  kill_ = after ? Kill::after : Kill::before;
  remaining_ = nth;
  of_one_kind_.clear();
  injected_.clear();
}

void FaultPlan::disarm() {
  std::lock_guard lock(mutex_);
  armed_ = false;
  of_one_kind_.clear();
  kill_ = Kill::no;
}

void FaultPlan::count_to_kill() {
  if (remaining_-- > 1) return;
  kill(getpid(), SIGKILL);
  while (true) pause();  // a signal to all threads may reach this one last
}

std::uint64_t FaultPlan::injected() const {
  std::lock_guard lock(mutex_);
  std::uint64_t sum = 0;
  for (const auto& [call, count] : injected_) sum += count;
  return sum;
}

std::uint64_t FaultPlan::injected(DriverCall call) const {
  std::lock_guard lock(mutex_);
  const auto it = injected_.find(call);
  return it == injected_.end() ? 0 : it->second;
}

Status FaultPlan::next(DriverCall call) {
  std::lock_guard lock(mutex_);
  if (kill_ == Kill::before) count_to_kill();
  if (const auto chosen = of_one_kind_.find(call); chosen != of_one_kind_.end()) {
    OfOneKind& kind = chosen->second;
    if (kind.before > 0) {
      --kind.before;
    } else if (kind.count > 0) {
      if (kind.count != every_call) --kind.count;
      ++injected_.at(call);
      return kind.code;
    }
  }
  if (!armed_ || (!releases_ && releases(call))) return Status::success;
  if (remaining_ > 1) {
    --remaining_;
    return Status::success;
  }
  if (!persistent_) armed_ = false;
  ++injected_.at(call);
  return code_;
}

void FaultPlan::returned(Status status) {
  std::lock_guard lock(mutex_);
  if (kill_ == Kill::after && status == Status::success) count_to_kill();
}

DriverPtr with_faults(DriverPtr inner, std::shared_ptr<FaultPlan> plan) {
  return std::make_shared<FaultDriver>(std::move(inner), std::move(plan));
}

}  // namespace gpupool

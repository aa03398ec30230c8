// Wraps a driver and fails chosen calls, for tests of every error path.
#include "driver/fault.h"

namespace gpupool {
namespace {

class FaultDriver final : public Driver {
 public:
  FaultDriver(DriverPtr inner, std::shared_ptr<FaultPlan> plan)
      : inner_(std::move(inner)), plan_(std::move(plan)) {}

#define GPUPOOL_WRAP(name, params, args, needs_context)          \
  Status name params noexcept override {                         \
    const Status fault = plan_->next(DriverCall::name);          \
    return fault == Status::success ? inner_->name args : fault; \
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

// Giving back must not fail in a test that asks what happens when taking fails: destructors could
// only leak then, which is a different test.
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

void FaultPlan::arm(std::uint64_t nth, Status code, bool persistent) {
  std::lock_guard lock(mutex_);
  armed_ = true;
  remaining_ = nth;
  code_ = code;
  persistent_ = persistent;
  injected_ = 0;
}

void FaultPlan::disarm() {
  std::lock_guard lock(mutex_);
  armed_ = false;
}

std::uint64_t FaultPlan::injected() const {
  std::lock_guard lock(mutex_);
  return injected_;
}

Status FaultPlan::next(DriverCall call) {
  std::lock_guard lock(mutex_);
  if (!armed_ || releases(call)) return Status::success;
  if (remaining_ > 1) {
    --remaining_;
    return Status::success;
  }
  if (!persistent_) armed_ = false;
  ++injected_;
  return code_;
}

DriverPtr with_faults(DriverPtr inner, std::shared_ptr<FaultPlan> plan) {
  return std::make_shared<FaultDriver>(std::move(inner), std::move(plan));
}

}  // namespace gpupool

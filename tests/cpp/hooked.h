// A driver that lets a test look before every call that is made of it.
#pragma once

#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#include "driver/driver.h"

namespace gpupool {

class Hooked final : public Driver {
 public:
  explicit Hooked(DriverPtr inner) : inner_(std::move(inner)) {}

#define GPUPOOL_HOOK(name, params, args, needs_context)                                           \
  Status name params noexcept override {                                                          \
    before(DriverCall::name);                                                                     \
    const Status status = inner_->name args;                                                      \
    if constexpr (DriverCall::name == DriverCall::stream_create) {                                \
      if (status == Status::success) std::apply([&](auto... a) { note(a...); }, std::tuple args); \
    }                                                                                             \
    return status;                                                                                \
  }
  GPUPOOL_DRIVER_CALLS(GPUPOOL_HOOK)
#undef GPUPOOL_HOOK

  std::int64_t now_ns() const noexcept override { return inner_->now_ns(); }
  DeviceKind kind() const noexcept override { return inner_->kind(); }
  int ordinal() const noexcept override { return inner_->ordinal(); }
  std::string status_name(Status status) const override { return inner_->status_name(status); }

  std::function<void(DriverCall)> before = [](DriverCall) {};  // must not throw
  std::vector<StreamHandle> streams;                           // in the order they were made

 private:
  void note(StreamHandle* stream) { streams.push_back(*stream); }
  template <typename... A>
  void note(A...) {}

  DriverPtr inner_;
};

}  // namespace gpupool

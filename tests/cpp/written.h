// A driver that knows by their addresses which bytes of device memory were written, as a tool that
// looks for uninitialised reads may: what is mapped counts as not written, whatever its pages have
// in them. It goes by the order in which work is asked for, and says what reads other bytes.
#pragma once

#include <atomic>
#include <cstdio>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "driver/operands.h"

namespace gpupool {

inline std::atomic<int>& unwritten_reads() {
  static std::atomic<int> count{0};
  return count;
}

// Ranges of addresses.
class Ranges {
 public:
  void remove(DevicePtr begin, DevicePtr end) {
    auto at = ends_.upper_bound(begin);
    if (at != ends_.begin()) --at;
    while (at != ends_.end() && at->first < end) {
      const auto [b, e] = *at++;
      if (e <= begin) continue;
      ends_.erase(b);
      if (b < begin) ends_[b] = begin;
      if (e > end) ends_[end] = e;
    }
  }
  void add(DevicePtr begin, DevicePtr end) {
    remove(begin, end);
    if (const auto next = ends_.find(end); next != ends_.end()) {
      end = next->second;
      ends_.erase(next);
    }
    auto before = ends_.lower_bound(begin);
    if (before != ends_.begin() && (--before)->second == begin) {
      before->second = end;
    } else {
      ends_[begin] = end;
    }
  }
  [[nodiscard]] bool has(DevicePtr begin, DevicePtr end) const {
    const auto behind = ends_.upper_bound(begin);
    return behind != ends_.begin() && std::prev(behind)->second >= end;
  }

 private:
  std::map<DevicePtr, DevicePtr> ends_;  // by where each begins; none touches another
};

class WrittenDriver final : public Driver {
 public:
  explicit WrittenDriver(DriverPtr inner) : inner_(std::move(inner)) {}

#define GPUPOOL_FOLLOW(name, params, args, needs_context)                                      \
  Status name params noexcept override {                                                       \
    const Status status = inner_->name args;                                                   \
    if (status == Status::success) {                                                           \
      std::apply([&](auto... a) { follow(DriverCall::name, operands_of_##name(true, a...)); }, \
                 std::tuple args);                                                             \
      std::apply([&](auto... a) { follow_batch(a...); }, std::tuple args);                     \
    }                                                                                          \
    return status;                                                                             \
  }
  GPUPOOL_DRIVER_CALLS(GPUPOOL_FOLLOW)
#undef GPUPOOL_FOLLOW

  std::int64_t now_ns() const noexcept override { return inner_->now_ns(); }
  DeviceKind kind() const noexcept override { return inner_->kind(); }
  int ordinal() const noexcept override { return inner_->ordinal(); }
  std::string status_name(Status status) const override { return inner_->status_name(status); }

 private:
  void follow(DriverCall call, const Operands& what) {
    const DevicePtr begin = what.address, end = what.address + what.bytes;
    switch (call) {
      case DriverCall::map:
      case DriverCall::unmap: {
        std::lock_guard lock(mutex_);
        written_.remove(begin, end);
        break;
      }
      case DriverCall::copy_to_device:
      case DriverCall::copy_to_device_digest:
      case DriverCall::fill: write(begin, end); break;
      case DriverCall::copy_to_host:
      case DriverCall::digest: read(begin, end); break;
      default: break;
    }
  }
  void follow_batch(const DevicePtr* destinations, const void* const*, const std::size_t* sizes,
                    std::size_t count, StreamHandle) {
    for (std::size_t i = 0; i < count; ++i) write(destinations[i], destinations[i] + sizes[i]);
  }
  void follow_batch(void* const*, const DevicePtr* sources, const std::size_t* sizes,
                    std::size_t count, StreamHandle) {
    for (std::size_t i = 0; i < count; ++i) read(sources[i], sources[i] + sizes[i]);
  }
  void follow_batch(const DeviceRun* runs, std::size_t count, std::uint64_t*, StreamHandle) {
    for (std::size_t i = 0; i < count; ++i) read(runs[i].address, runs[i].address + runs[i].bytes);
  }
  template <typename... Others>
  void follow_batch(Others...) {}

  void write(DevicePtr begin, DevicePtr end) {
    std::lock_guard lock(mutex_);
    if (begin < end) written_.add(begin, end);
  }
  void read(DevicePtr begin, DevicePtr end) {
    std::lock_guard lock(mutex_);
    if (begin == end || written_.has(begin, end)) return;
    ++unwritten_reads();
    std::printf("of %zu bytes at %#zx that were read not all were written\n",
                static_cast<std::size_t>(end - begin), static_cast<std::size_t>(begin));
  }

  const DriverPtr inner_;
  std::mutex mutex_;
  Ranges written_;
};

}  // namespace gpupool

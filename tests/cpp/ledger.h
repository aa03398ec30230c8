// A driver that keeps the books of the one beneath it: what is held, and which calls were made.
#pragma once

#include <algorithm>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "driver/fault.h"

namespace gpupool {

struct Holdings {
  std::size_t pages, reservations, mappings, registrations, streams, events;
  bool operator==(const Holdings&) const = default;
};

class Ledger final : public Driver {
 public:
  explicit Ledger(DriverPtr inner) : inner_(std::move(inner)) {
    behind_.reserve(4096);  // a call of the driver must not fail for the books' sake
  }

#define GPUPOOL_FORWARD(name, params, args, needs_context)                \
  Status name params noexcept override {                                  \
    const Status status = inner_->name args;                              \
    if (status == Status::success)                                        \
      std::apply([&](auto... a) { note_##name(a...); }, std::tuple args); \
    else if (status != Status::not_ready)                                 \
      add(refused_, 1);                                                   \
    return status;                                                        \
  }
  GPUPOOL_DRIVER_CALLS(GPUPOOL_FORWARD)
#undef GPUPOOL_FORWARD

  std::int64_t now_ns() const noexcept override { return inner_->now_ns(); }
  DeviceKind kind() const noexcept override { return inner_->kind(); }
  int ordinal() const noexcept override { return inner_->ordinal(); }
  std::string status_name(Status status) const override { return inner_->status_name(status); }

  Holdings held() const {
    std::lock_guard lock(mutex_);
    return {pages_, reservations_, mapped_, registrations_, streams_, events_};
  }
  // Whether the page is behind some address now.
  bool mapped(PageHandle page) const {
    std::lock_guard lock(mutex_);
    return std::any_of(behind_.begin(), behind_.end(),
                       [&](const auto& mapping) { return mapping.second == page; });
  }
  // Calls that the driver beneath refused.
  std::size_t refused() const {
    std::lock_guard lock(mutex_);
    return refused_;
  }

 private:
  void add(std::size_t& count, int n) {
    std::lock_guard lock(mutex_);
    count += static_cast<std::size_t>(n);
  }
  void note_page_create(PageHandle*, std::size_t) { add(pages_, 1); }
  void note_page_import(PageHandle*, int) { add(pages_, 1); }
  void note_page_release(PageHandle) { add(pages_, -1); }
  void note_address_reserve(DevicePtr*, std::size_t) { add(reservations_, 1); }
  void note_address_free(DevicePtr, std::size_t) { add(reservations_, -1); }
  // Bytes mapped, for one unmap may take back several maps.
  void note_map(DevicePtr address, std::size_t bytes, PageHandle page) {
    add(mapped_, static_cast<int>(bytes));
    std::lock_guard lock(mutex_);
    behind_.emplace_back(address, page);
  }
  void note_unmap(DevicePtr address, std::size_t bytes) {
    add(mapped_, -static_cast<int>(bytes));
    std::lock_guard lock(mutex_);
    std::erase_if(behind_, [&](const auto& mapping) {
      return mapping.first >= address && mapping.first < address + bytes;
    });
  }
  void note_host_register(void*, std::size_t) { add(registrations_, 1); }
  void note_host_unregister(void*) { add(registrations_, -1); }
  void note_stream_create(StreamHandle*) { add(streams_, 1); }
  void note_stream_destroy(StreamHandle) { add(streams_, -1); }
  void note_event_create(EventHandle*) { add(events_, 1); }
  void note_event_destroy(EventHandle) { add(events_, -1); }
  // Calls that change nothing that is held.
#define GPUPOOL_NOTHING(name) \
  template <typename... A>    \
  void note_##name(A...) {}
  GPUPOOL_NOTHING(page_granularity)
  GPUPOOL_NOTHING(memory_info)
  GPUPOOL_NOTHING(page_export)
  GPUPOOL_NOTHING(set_access)
  GPUPOOL_NOTHING(set_read_only)
  GPUPOOL_NOTHING(context_synchronize)
  GPUPOOL_NOTHING(stream_synchronize)
  GPUPOOL_NOTHING(stream_wait_event)
  GPUPOOL_NOTHING(event_record)
  GPUPOOL_NOTHING(event_query)
  GPUPOOL_NOTHING(event_synchronize)
  GPUPOOL_NOTHING(copy_to_device)
  GPUPOOL_NOTHING(copy_to_host)
  GPUPOOL_NOTHING(copy_batch_to_device)
  GPUPOOL_NOTHING(copy_batch_to_host)
  GPUPOOL_NOTHING(fill)
  GPUPOOL_NOTHING(digest)
  GPUPOOL_NOTHING(digest_runs)
  GPUPOOL_NOTHING(copy_to_device_digest)
#undef GPUPOOL_NOTHING

  DriverPtr inner_;
  mutable std::mutex mutex_;
  std::vector<std::pair<DevicePtr, PageHandle>> behind_;
  std::size_t pages_ = 0, reservations_ = 0, mapped_ = 0, registrations_ = 0, streams_ = 0,
              events_ = 0, refused_ = 0;
};

}  // namespace gpupool

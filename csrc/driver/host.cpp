// The host driver: the seam's contract over ordinary memory, strict enough to be a test bench.
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include <unistd.h>

#include "driver/driver.h"
#include "driver/host_address_space.h"
#include "driver/host_streams.h"

namespace gpupool {
namespace host {
namespace {

class HostDriver final : public Driver {
 public:
  Status page_granularity(std::size_t* bytes) noexcept override {
    *bytes = granularity_bytes;
    return Status::success;
  }
  Status memory_info(std::size_t* free_bytes, std::size_t* total_bytes) noexcept override {
    return guarded([&] {
      const std::size_t free = available_bytes();
      *total_bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) *
                     static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES));
      *free_bytes = free;
      return Status::success;
    });
  }
  Status page_create(PageHandle* page, std::size_t bytes) noexcept override {
    return guarded([&] { return pages_.create(page, bytes); });
  }
  Status page_release(PageHandle page) noexcept override {
    return guarded([&] { return pages_.release(page); });
  }
  Status page_export(int* fd, PageHandle page) noexcept override {
    return guarded([&] { return pages_.export_fd(fd, page); });
  }
  Status page_import(PageHandle* page, int fd) noexcept override {
    return guarded([&] { return pages_.import_fd(page, fd); });
  }
  Status address_reserve(DevicePtr* address, std::size_t bytes) noexcept override {
    return guarded([&] { return space_.reserve(address, bytes); });
  }
  Status address_free(DevicePtr address, std::size_t bytes) noexcept override {
    return guarded([&] { return space_.free(address, bytes); });
  }
  Status map(DevicePtr address, std::size_t bytes, PageHandle page) noexcept override {
    return guarded([&] { return space_.map(address, bytes, page); });
  }
  Status unmap(DevicePtr address, std::size_t bytes) noexcept override {
    return guarded([&] { return space_.unmap(address, bytes); });
  }
  Status set_access(DevicePtr address, std::size_t bytes) noexcept override {
    return guarded([&] { return space_.set_access(address, bytes); });
  }

  Status host_register(void* memory, std::size_t bytes) noexcept override {
    return guarded([&] {
      const auto start = reinterpret_cast<std::uintptr_t>(memory);
      if (memory == nullptr || bytes == 0 || start + bytes < start) return Status::invalid_value;
      std::lock_guard lock(registered_mutex_);
      const auto next = registered_.lower_bound(start);
      if (next != registered_.end() && next->first < start + bytes) {
        return Status::host_memory_already_registered;
      }
      if (next != registered_.begin()) {
        const auto previous = std::prev(next);
        if (previous->first + previous->second > start) {
          return Status::host_memory_already_registered;
        }
      }
      registered_.emplace(start, bytes);
      return Status::success;
    });
  }
  Status host_unregister(void* memory) noexcept override {
    std::lock_guard lock(registered_mutex_);
    return registered_.erase(reinterpret_cast<std::uintptr_t>(memory)) == 1
               ? Status::success
               : Status::host_memory_not_registered;
  }

  Status context_synchronize() noexcept override {
    return after(guarded([&] { return streams_.synchronize_all(); }));
  }
  Status stream_create(StreamHandle* stream) noexcept override {
    return guarded([&] { return streams_.create(stream); });
  }
  Status stream_destroy(StreamHandle stream) noexcept override {
    return guarded([&] { return streams_.destroy(stream); });
  }
  Status stream_synchronize(StreamHandle stream) noexcept override {
    return after(guarded([&] { return streams_.synchronize(stream); }));
  }
  Status stream_wait_event(StreamHandle stream, EventHandle event) noexcept override {
    return guarded([&] { return streams_.wait_on_stream(stream, event); });
  }
  Status event_create(EventHandle* event) noexcept override {
    return guarded([&] { return streams_.create_event(event); });
  }
  Status event_destroy(EventHandle event) noexcept override {
    return guarded([&] { return streams_.destroy_event(event); });
  }
  Status event_record(EventHandle event, StreamHandle stream) noexcept override {
    return guarded([&] { return streams_.record(event, stream); });
  }
  Status event_query(EventHandle event) noexcept override {
    return after(guarded([&] { return streams_.query(event); }));
  }
  Status event_synchronize(EventHandle event) noexcept override {
    return after(guarded([&] { return streams_.wait(event); }));
  }

  Status copy_to_device(DevicePtr destination, const void* source, std::size_t bytes,
                        StreamHandle stream) noexcept override {
    return guarded([&] {
      if (!is_registered(source, bytes)) return Status::invalid_value;
      return device_work(destination, bytes, stream,
                         [=] { std::memcpy(reinterpret_cast<void*>(destination), source, bytes); });
    });
  }
  Status copy_to_host(void* destination, DevicePtr source, std::size_t bytes,
                      StreamHandle stream) noexcept override {
    return guarded([&] {
      if (!is_registered(destination, bytes)) return Status::invalid_value;
      return device_work(source, bytes, stream, [=] {
        std::memcpy(destination, reinterpret_cast<const void*>(source), bytes);
      });
    });
  }
  Status fill(DevicePtr destination, std::uint8_t value, std::size_t bytes,
              StreamHandle stream) noexcept override {
    return guarded([&] {
      return device_work(destination, bytes, stream,
                         [=] { std::memset(reinterpret_cast<void*>(destination), value, bytes); });
    });
  }

  std::int64_t now_ns() const noexcept override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  DeviceKind kind() const noexcept override { return DeviceKind::host; }
  int ordinal() const noexcept override { return 0; }

 private:
  // Turns what the emulation itself may throw into a status; a sticky fault comes first.
  template <typename Call>
  Status guarded(Call call) noexcept {
    if (const Status fault = fault_.load(); fault != Status::success) return fault;
    try {
      return call();
    } catch (const std::bad_alloc&) {
      return Status::out_of_memory;
    } catch (...) {
      return Status::unknown;
    }
  }
  // A wait reports what the work it waited for has met.
  Status after(Status status) const noexcept {
    const Status fault = fault_.load();
    return fault == Status::success ? status : fault;
  }

  template <typename Work>
  Status device_work(DevicePtr address, std::size_t bytes, StreamHandle stream, Work work) {
    if (bytes == 0 || !space_.accessible(address, bytes)) return Status::invalid_value;
    return streams_.enqueue(stream, [this, address, bytes, work] {
      // Checked again when it runs: a range unmapped meanwhile is a use after unmap.
      const Status status = space_.touch(address, bytes, work);
      if (status != Status::success) fault_.store(status);
    });
  }

  bool is_registered(const void* memory, std::size_t bytes) {
    std::lock_guard lock(registered_mutex_);
    const auto start = reinterpret_cast<std::uintptr_t>(memory);
    auto it = registered_.upper_bound(start);
    if (it == registered_.begin()) return false;
    --it;
    return start + bytes <= it->first + it->second;
  }

  Pages pages_;
  AddressSpace space_{pages_};
  std::mutex registered_mutex_;
  std::map<std::uintptr_t, std::size_t> registered_;
  std::atomic<Status> fault_{Status::success};
  Streams streams_;  // last: its threads end before what they touch
};

}  // namespace
}  // namespace host

DriverPtr open_host_driver() { return std::make_shared<host::HostDriver>(); }

}  // namespace gpupool

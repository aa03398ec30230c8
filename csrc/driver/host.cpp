// The host driver: the seam's contract over ordinary memory, strict enough to be a test bench.
#include "driver/host.h"

#include <unistd.h>

#include <bit>
#include <cstring>
#include <new>
#include <utility>

#include "driver/host_copy.h"
#include "driver/host_work.h"
#include "driver/system_memory.h"

namespace gpupool {
namespace host {
namespace {

class Host final : public HostDriver, private HostWork {
 public:
  explicit Host(const HostOptions& options)
      : HostWork(options.granularity_bytes, options.streams == StreamMode::threads
                                                ? threaded_streams()
                                                : stepped_streams(options.seed)) {}

  Status page_granularity(std::size_t* bytes) noexcept override {
    return guarded([&] {
      *bytes = pages_.granularity_bytes();
      return Status::success;
    });
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
    return guarded([&] { return space_.set_access(address, bytes, Access::write); });
  }
  Status set_read_only(DevicePtr address, std::size_t bytes) noexcept override {
    return guarded([&] { return space_.set_access(address, bytes, Access::read); });
  }

  Status host_register(void* memory, std::size_t bytes) noexcept override {
    return guarded([&] { return registry_.add(memory, bytes); });
  }
  Status host_unregister(void* memory) noexcept override {
    return guarded([&] { return registry_.remove(memory); });
  }

  Status context_synchronize() noexcept override {
    return after(guarded([&] { return streams_->synchronize_all(); }));
  }
  Status stream_create(StreamHandle* stream) noexcept override {
    return guarded([&] { return streams_->create(stream); });
  }
  Status stream_destroy(StreamHandle stream) noexcept override {
    return guarded([&] { return streams_->destroy(stream); });
  }
  Status stream_synchronize(StreamHandle stream) noexcept override {
    return after(guarded([&] { return streams_->synchronize(stream); }));
  }
  Status stream_wait_event(StreamHandle stream, EventHandle event) noexcept override {
    return guarded([&] { return streams_->wait_on_stream(stream, event); });
  }
  Status event_create(EventHandle* event) noexcept override {
    return guarded([&] { return streams_->create_event(event); });
  }
  Status event_destroy(EventHandle event) noexcept override {
    return guarded([&] { return streams_->destroy_event(event); });
  }
  Status event_record(EventHandle event, StreamHandle stream) noexcept override {
    return guarded([&] { return streams_->record(event, stream); });
  }
  Status event_query(EventHandle event) noexcept override {
    return after(guarded([&] { return streams_->query(event); }));
  }
  Status event_synchronize(EventHandle event) noexcept override {
    return after(guarded([&] { return streams_->wait(event); }));
  }

  Status copy_to_device(DevicePtr destination, const void* source, std::size_t bytes,
                        StreamHandle stream) noexcept override {
    return guarded([&] {
      return copy(destination, Access::write, source, bytes, stream,
                  [=](std::size_t at, std::size_t n) {
                    copy_bytes(pointer(destination + at), static_cast<const char*>(source) + at, n);
                  });
    });
  }
  Status copy_to_host(void* destination, DevicePtr source, std::size_t bytes,
                      StreamHandle stream) noexcept override {
    return guarded([&] {
      return copy(source, Access::read, destination, bytes, stream,
                  [=](std::size_t at, std::size_t n) {
                    copy_bytes(static_cast<char*>(destination) + at, pointer(source + at), n);
                  });
    });
  }
  Status copy_batch_to_device(const DevicePtr* destinations, const void* const* sources,
                              const std::size_t* sizes, std::size_t count,
                              StreamHandle stream) noexcept override {
    return guarded([&] {
      return copy_batch(destinations, destinations, Access::write, sources, sizes, count, stream,
                        [](DevicePtr device, const void* memory, std::size_t n) {
                          copy_bytes(pointer(device), memory, n);
                        });
    });
  }
  Status copy_batch_to_host(void* const* destinations, const DevicePtr* sources,
                            const std::size_t* sizes, std::size_t count,
                            StreamHandle stream) noexcept override {
    return guarded([&] {
      return copy_batch(destinations, sources, Access::read, destinations, sizes, count, stream,
                        [](DevicePtr device, void* memory, std::size_t n) {
                          copy_bytes(memory, pointer(device), n);
                        });
    });
  }
  Status fill(DevicePtr destination, std::uint8_t value, std::size_t bytes,
              StreamHandle stream) noexcept override {
    return guarded([&] {
      if (bytes == 0 || !space_.accessible(destination, bytes, Access::write)) {
        return Status::invalid_value;
      }
      return enqueue(stream, bytes, [=, this](std::size_t begin, std::size_t end) {
        return space_.touch(destination + begin, end - begin, Access::write, [&] {
          std::memset(pointer(destination + begin), value, end - begin);
          return Status::success;
        });
      });
    });
  }
  Status copy_to_device_digest(DevicePtr destination, const void* source, std::size_t bytes,
                               std::uint64_t* sums, StreamHandle stream) noexcept override {
    return guarded([&] {
      if (!registry_.holds(source, bytes)) return Status::invalid_value;
      if (streams_->fuses()) return digest_pieces(destination, source, bytes, sums, stream);
      const Status refused = may_digest(destination, Access::write, bytes, sums);
      if (refused != Status::success) return refused;
      const Status copied = copy_to_device(destination, source, bytes, stream);
      return copied == Status::success ? digest(destination, bytes, sums, stream) : copied;
    });
  }
  Status digest(DevicePtr memory, std::size_t bytes, std::uint64_t* sums,
                StreamHandle stream) noexcept override {
    return guarded([&] { return digest_pieces(memory, nullptr, bytes, sums, stream); });
  }
  Status digest_runs(const DeviceRun* runs, std::size_t count, std::uint64_t* sums,
                     StreamHandle stream) noexcept override {
    return guarded([&] { return digest_all(runs, count, sums, stream); });
  }

  Status launch(StreamHandle stream, std::vector<DeviceRange> touched,
                std::function<void()> kernel) noexcept override {
    return guarded([&] {
      return enqueue(stream, 1, [=, this](std::size_t, std::size_t) {
        return space_.touch_all(touched, kernel);
      });
    });
  }
  Status hold(StreamHandle stream, std::unique_ptr<Hold>* hold) noexcept override {
    return guarded([&] {
      auto record = std::make_shared<EventRecord>();
      auto made = std::make_unique<Hold>([record] { record->finish(); });
      const Status status = streams_->hold(stream, record);
      if (status == Status::success) *hold = std::move(made);
      return status;
    });
  }
  std::size_t pending() const override { return streams_->pending(); }
  void advance_ns(std::int64_t ns) noexcept override { streams_->advance_ns(ns); }
  std::string deadlock() const override { return streams_->deadlock(); }

  std::int64_t now_ns() const noexcept override { return streams_->now_ns(); }
  DeviceKind kind() const noexcept override { return DeviceKind::host; }
  int ordinal() const noexcept override { return 0; }
  std::string status_name(Status status) const override {
    std::string name = Driver::status_name(status);
    if (status == Status::launch_timeout) name += " (" + deadlock() + ")";
    return name;
  }

 private:
  // Turns what the emulation itself may throw into a status; a sticky fault comes first.
  template <typename Call>
  Status guarded(Call call) noexcept {
    if (getpid() != process_) return Status::not_initialized;  // in a forked child, as with CUDA
    streams_->point();
    if (const Status fault = fault_.load(); fault != Status::success) return fault;
    try {
      return call();
    } catch (...) {
      return status_of_exception();
    }
  }
  static Status status_of_exception() noexcept {
    try {
      throw;
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

  const pid_t process_ = getpid();
};

}  // namespace

std::shared_ptr<HostDriver> open_host_device(const HostOptions& options) {
  const std::size_t granularity = options.granularity_bytes;
  if (!std::has_single_bit(granularity) || granularity < 4096) {
    throw UsageError("granularity of " + std::to_string(granularity) +
                     " bytes must be a power of two and at least 4096");
  }
  return std::make_shared<Host>(options);
}

}  // namespace host

DriverPtr open_host_driver(const HostOptions& options) { return host::open_host_device(options); }

}  // namespace gpupool

// The seam for the GPU: every piece of device work in gpupool goes through one Driver.
//
// The seam speaks in pages, addresses, streams and events. Its contract is that of the CUDA
// driver API (cuda.h), which the comments restate; `host` enforces it, `cuda` forwards to it.
//
// Common to all calls:
//  - A call returns a Status and never throws; outputs are written only on Status::success.
//  - Any thread may call. A call never takes the GIL and knows nothing of Python.
//  - Sizes of pages and of address ranges are multiples of page_granularity().
//  - Work put on a stream runs in the order of that stream; its memory, device or host, must
//    stay valid until an event recorded after it has completed or the stream is synchronised.
//  - A failure of asynchronous work is sticky: later calls return the same status.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

namespace gpupool {

// Values are those of CUresult, so that a status of the CUDA driver passes through unchanged.
enum class Status : int {
  success = 0,
  invalid_value = 1,
  out_of_memory = 2,
  not_initialized = 3,
  no_device = 100,
  invalid_device = 101,
  invalid_handle = 400,
  not_found = 500,
  not_ready = 600,
  illegal_address = 700,
  launch_timeout = 702,
  host_memory_already_registered = 712,
  host_memory_not_registered = 713,
  not_supported = 801,
  unknown = 999,
};

using DevicePtr = std::uint64_t;   // an address on the device
using PageHandle = std::uint64_t;  // physical memory; 0 is no page
struct StreamState;                // opaque
struct EventState;                 // opaque
using StreamHandle = StreamState*;
using EventHandle = EventState*;

// How much memory has one digest of its own, which is what is compared and copied again.
inline constexpr std::size_t digest_piece_bytes = std::size_t{2} << 20;

// What of device memory has one digest where runs of any length are digested.
struct DeviceRun {
  DevicePtr address;
  std::uint64_t bytes;
};

// X(name, (parameters), (arguments), needs_context)
// One list generates the interface and its wrappers; needs_context is 0 for what works in a
// process without a CUDA context (cuInit only), which is all that the pool daemon uses.
//
// page_granularity   smallest page size; every page size is a multiple of it
// memory_info        free and total bytes of the device
// page_create        new physical memory of `bytes`; its content is undefined
// page_release       drops this handle; the memory lives while a mapping or another process
//                    holds it
// page_export        a new POSIX file descriptor for the page, owned by the caller
// page_import        a handle for a page another process exported; `fd` stays the caller's
// address_reserve    a range of addresses with nothing behind it
// address_free       gives a whole reserved range back; nothing may be mapped in it
// map                puts a whole page at `address`; no access yet
// unmap              removes whole mappings that exactly fill [address, address + bytes);
//                    no work that touches them may be in flight
// set_access         makes a fully mapped range readable and writable by the device
// set_read_only      the same, for reading alone: what writes there is refused, or faults; nothing
//                    that does may be in flight
// host_register      pins host memory for asynchronous copies
// context_synchronize  waits for all work in the device's primary context, also that of others who
//                    use it, as torch does; not for what runs in contexts of another kind
// stream_wait_event  later work of `stream` waits for the event's last record; an event never
//                    recorded counts as complete
// event_query        success when complete, not_ready otherwise
// copy_*, fill       asynchronous; host memory must be registered
// copy_batch_*       `count` copies, at least one and of at least one byte each, in one call. The
//                    batch as a whole runs in the order of its stream, and reads its sources then;
//                    its copies run in no order among themselves, so no destination of a batch may
//                    overlap another. The arrays are the caller's again after the call. The stream
//                    must not be the legacy default stream. After a failure some of the copies may
//                    be in flight. A driver of before CUDA 12.8 has no such call: it answers
//                    not_supported, and has done nothing
// digest             asynchronous: sums[i] becomes the digest (digest/digest.h) of the i-th
//                    digest_piece_bytes of device memory, of which the last may have fewer; `sums`
//                    lies in registered host memory, and the memory must be mapped with access
// digest_runs        the same of `count` runs of at least one byte each, at least one of them:
//                    sums[i] becomes the digest of runs[i]. Both lie in registered host memory, and
//                    the runs, all of which must be mapped with access, are read when it runs
// copy_to_device_digest  copies, and digests what the destination then holds; after a failure the
//                    copy may be in flight
#define GPUPOOL_DRIVER_CALLS(X)                                                                  \
  X(page_granularity, (std::size_t* bytes), (bytes), 0)                                          \
  X(memory_info, (std::size_t* free_bytes, std::size_t* total_bytes), (free_bytes, total_bytes), \
    1)                                                                                           \
  X(page_create, (PageHandle * page, std::size_t bytes), (page, bytes), 0)                       \
  X(page_release, (PageHandle page), (page), 0)                                                  \
  X(page_export, (int* fd, PageHandle page), (fd, page), 0)                                      \
  X(page_import, (PageHandle * page, int fd), (page, fd), 0)                                     \
  X(address_reserve, (DevicePtr * address, std::size_t bytes), (address, bytes), 1)              \
  X(address_free, (DevicePtr address, std::size_t bytes), (address, bytes), 1)                   \
  X(map, (DevicePtr address, std::size_t bytes, PageHandle page), (address, bytes, page), 1)     \
  X(unmap, (DevicePtr address, std::size_t bytes), (address, bytes), 1)                          \
  X(set_access, (DevicePtr address, std::size_t bytes), (address, bytes), 1)                     \
  X(set_read_only, (DevicePtr address, std::size_t bytes), (address, bytes), 1)                  \
  X(host_register, (void* memory, std::size_t bytes), (memory, bytes), 1)                        \
  X(host_unregister, (void* memory), (memory), 1)                                                \
  X(context_synchronize, (), (), 1)                                                              \
  X(stream_create, (StreamHandle * stream), (stream), 1)                                         \
  X(stream_destroy, (StreamHandle stream), (stream), 1)                                          \
  X(stream_synchronize, (StreamHandle stream), (stream), 1)                                      \
  X(stream_wait_event, (StreamHandle stream, EventHandle event), (stream, event), 1)             \
  X(event_create, (EventHandle * event), (event), 1)                                             \
  X(event_destroy, (EventHandle event), (event), 1)                                              \
  X(event_record, (EventHandle event, StreamHandle stream), (event, stream), 1)                  \
  X(event_query, (EventHandle event), (event), 1)                                                \
  X(event_synchronize, (EventHandle event), (event), 1)                                          \
  X(copy_to_device,                                                                              \
    (DevicePtr destination, const void* source, std::size_t bytes, StreamHandle stream),         \
    (destination, source, bytes, stream), 1)                                                     \
  X(copy_to_host, (void* destination, DevicePtr source, std::size_t bytes, StreamHandle stream), \
    (destination, source, bytes, stream), 1)                                                     \
  X(copy_batch_to_device,                                                                        \
    (const DevicePtr* destinations, const void* const* sources, const std::size_t* sizes,        \
     std::size_t count, StreamHandle stream),                                                    \
    (destinations, sources, sizes, count, stream), 1)                                            \
  X(copy_batch_to_host,                                                                          \
    (void* const* destinations, const DevicePtr* sources, const std::size_t* sizes,              \
     std::size_t count, StreamHandle stream),                                                    \
    (destinations, sources, sizes, count, stream), 1)                                            \
  X(fill, (DevicePtr destination, std::uint8_t value, std::size_t bytes, StreamHandle stream),   \
    (destination, value, bytes, stream), 1)                                                      \
  X(digest, (DevicePtr memory, std::size_t bytes, std::uint64_t* sums, StreamHandle stream),     \
    (memory, bytes, sums, stream), 1)                                                            \
  X(digest_runs,                                                                                 \
    (const DeviceRun* runs, std::size_t count, std::uint64_t* sums, StreamHandle stream),        \
    (runs, count, sums, stream), 1)                                                              \
  X(copy_to_device_digest,                                                                       \
    (DevicePtr destination, const void* source, std::size_t bytes, std::uint64_t* sums,          \
     StreamHandle stream),                                                                       \
    (destination, source, bytes, sums, stream), 1)

enum class DriverCall {
#define GPUPOOL_ENUMERATE(name, params, args, needs_context) name,
  GPUPOOL_DRIVER_CALLS(GPUPOOL_ENUMERATE)
#undef GPUPOOL_ENUMERATE
};

// The names of all calls, in the order of DriverCall.
inline constexpr const char* driver_call_names[] = {
#define GPUPOOL_NAME(name, params, args, needs_context) #name,
    GPUPOOL_DRIVER_CALLS(GPUPOOL_NAME)
#undef GPUPOOL_NAME
};

enum class DeviceKind { host, cuda };

class Driver {
 public:
  virtual ~Driver() = default;
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

#define GPUPOOL_DECLARE(name, params, args, needs_context) \
  [[nodiscard]] virtual Status name params noexcept = 0;
  GPUPOOL_DRIVER_CALLS(GPUPOOL_DECLARE)
#undef GPUPOOL_DECLARE

  // Monotonic clock: part of the seam, so that a test controls time as well as memory.
  [[nodiscard]] virtual std::int64_t now_ns() const noexcept = 0;
  [[nodiscard]] virtual DeviceKind kind() const noexcept = 0;
  [[nodiscard]] virtual int ordinal() const noexcept = 0;
  // The driver's own name of a status, such as CUDA_ERROR_OUT_OF_MEMORY.
  [[nodiscard]] virtual std::string status_name(Status status) const;

 protected:
  Driver() = default;
};

using DriverPtr = std::shared_ptr<Driver>;

// A driver call failed: its status, the driver's name for it and the call.
class DriverError : public std::runtime_error {
 public:
  DriverError(const Driver& driver, const char* call, Status status);
  [[nodiscard]] Status status() const noexcept { return status_; }
  [[nodiscard]] const char* call() const noexcept { return call_; }

 private:
  Status status_;
  const char* call_;
};

// The caller broke a precondition of gpupool itself; nothing was changed.
class UsageError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

inline void check(const Driver& driver, const char* call, Status status) {
  if (status != Status::success) throw DriverError(driver, call, status);
}

// check(driver->name(arguments...)), with the call's name in the error.
#define GPUPOOL_CALL(driver, name, ...) \
  ::gpupool::check(*(driver), #name, (driver)->name(__VA_ARGS__))

// The CUDA driver, loaded from libcuda.so.1 at this call; no context is made before a call that
// needs one. Throws DriverError or std::runtime_error with what is missing.
DriverPtr open_cuda_driver(int ordinal);

// How the host driver runs what is on its streams: as threads, or one step at a time inside driver
// calls, by a scheduler with a seed that has work done as early or as late as CUDA allows.
enum class StreamMode { threads, stepped };

struct HostOptions {
  StreamMode streams = StreamMode::threads;
  std::uint64_t seed = 0;                                // of the schedule, when stepped
  std::size_t granularity_bytes = std::size_t{2} << 20;  // a power of two, 4 KiB or more
};

// An emulation in host memory: pages are memfds. Strict: it refuses what the CUDA driver refuses,
// poisons fresh pages and lets nobody touch a range without access. Stepped streams report a wait
// that can never end as launch_timeout. Throws UsageError.
DriverPtr open_host_driver(const HostOptions& options = {});

}  // namespace gpupool

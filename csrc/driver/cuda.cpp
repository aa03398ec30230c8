// The CUDA driver over libcuda.so.1, in the primary context, which is shared with whatever else
// runs in the process (torch uses the same one).
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <mutex>

#include "driver/cuda_abi.h"
#include "driver/cuda_digest.h"
#include "driver/driver.h"

namespace gpupool {
namespace cuda {
namespace {

Status status_of(Result result) { return static_cast<Status>(result); }

Stream native(StreamHandle stream) { return reinterpret_cast<Stream>(stream); }
Event native(EventHandle event) { return reinterpret_cast<Event>(event); }

class CudaDriver final : public Driver {
 public:
  explicit CudaDriver(int ordinal) : cu_(symbols()), ordinal_(ordinal) {
    check(*this, "cuInit", status_of(cu_.cuInit(0)));
    check(*this, "cuDeviceGet", status_of(cu_.cuDeviceGet(&device_, ordinal)));
  }
  ~CudaDriver() override {
    if (context_ == nullptr) return;
    // Others, as torch, may keep the context.
    static_cast<void>(in_context([&] { return digest_kernel_.unload(cu_); }));
    cu_.cuDevicePrimaryCtxRelease(device_);
  }

  Status page_granularity(std::size_t* bytes) noexcept override {
    const AllocationProperties properties = page_properties();
    return relaxed(
        [&] { return cu_.cuMemGetAllocationGranularity(bytes, &properties, granularity_minimum); });
  }
  Status memory_info(std::size_t* free_bytes, std::size_t* total_bytes) noexcept override {
    return in_context([&] { return cu_.cuMemGetInfo(free_bytes, total_bytes); });
  }
  Status page_create(PageHandle* page, std::size_t bytes) noexcept override {
    const AllocationProperties properties = page_properties();
    return relaxed([&] { return cu_.cuMemCreate(page, bytes, &properties, 0); });
  }
  Status page_release(PageHandle page) noexcept override {
    return relaxed([&] { return cu_.cuMemRelease(page); });
  }
  Status page_export(int* fd, PageHandle page) noexcept override {
    int own = -1;
    const Status status = relaxed(
        [&] { return cu_.cuMemExportToShareableHandle(&own, page, handle_type_posix_fd, 0); });
    if (status != Status::success) return status;
    // Else a program that this process starts would have it, and keep the page alive.
    if (fcntl(own, F_SETFD, FD_CLOEXEC) != 0) {
      close(own);
      return Status::unknown;
    }
    *fd = own;
    return status;
  }
  Status page_import(PageHandle* page, int fd) noexcept override {
    return relaxed([&] {
      return cu_.cuMemImportFromShareableHandle(
          page, reinterpret_cast<void*>(static_cast<std::intptr_t>(fd)), handle_type_posix_fd);
    });
  }
  Status address_reserve(DevicePtr* address, std::size_t bytes) noexcept override {
    std::size_t alignment = 0;
    if (const Status status = page_granularity(&alignment); status != Status::success) {
      return status;
    }
    return in_context([&] { return cu_.cuMemAddressReserve(address, bytes, alignment, 0, 0); });
  }
  Status address_free(DevicePtr address, std::size_t bytes) noexcept override {
    return in_context([&] { return cu_.cuMemAddressFree(address, bytes); });
  }
  Status map(DevicePtr address, std::size_t bytes, PageHandle page) noexcept override {
    return in_context([&] { return cu_.cuMemMap(address, bytes, 0, page, 0); });
  }
  Status unmap(DevicePtr address, std::size_t bytes) noexcept override {
    return in_context([&] { return cu_.cuMemUnmap(address, bytes); });
  }
  Status set_access(DevicePtr address, std::size_t bytes) noexcept override {
    return give_access(address, bytes, access_read_write);
  }
  Status set_read_only(DevicePtr address, std::size_t bytes) noexcept override {
    return give_access(address, bytes, access_read);
  }
  Status host_register(void* memory, std::size_t bytes) noexcept override {
    return in_context([&] { return cu_.cuMemHostRegister(memory, bytes, host_register_flags); });
  }
  Status host_unregister(void* memory) noexcept override {
    return in_context([&] { return cu_.cuMemHostUnregister(memory); });
  }
  Status context_synchronize() noexcept override {
    return in_context([&] { return cu_.cuCtxSynchronize(); });
  }
  Status stream_create(StreamHandle* stream) noexcept override {
    return in_context([&] {
      // Non-blocking: copies must not wait for the legacy default stream of other code.
      return cu_.cuStreamCreate(reinterpret_cast<Stream*>(stream), stream_non_blocking);
    });
  }
  Status stream_destroy(StreamHandle stream) noexcept override {
    return in_context([&] { return cu_.cuStreamDestroy(native(stream)); });
  }
  Status stream_synchronize(StreamHandle stream) noexcept override {
    return in_context([&] { return cu_.cuStreamSynchronize(native(stream)); });
  }
  Status stream_wait_event(StreamHandle stream, EventHandle event) noexcept override {
    return in_context([&] { return cu_.cuStreamWaitEvent(native(stream), native(event), 0); });
  }
  Status event_create(EventHandle* event) noexcept override {
    return in_context([&] {
      // Who waits for one sleeps rather than keeps a core busy. Waking takes some tens of
      // microseconds, little beside the chunk of a copy that is waited for, and the next chunk is
      // on its way meanwhile. Asking whether an event is complete does not change.
      return cu_.cuEventCreate(reinterpret_cast<Event*>(event),
                               event_disable_timing | event_blocking_sync);
    });
  }
  Status event_destroy(EventHandle event) noexcept override {
    return in_context([&] { return cu_.cuEventDestroy(native(event)); });
  }
  Status event_record(EventHandle event, StreamHandle stream) noexcept override {
    return in_context([&] { return cu_.cuEventRecord(native(event), native(stream)); });
  }
  Status event_query(EventHandle event) noexcept override {
    return in_context([&] { return cu_.cuEventQuery(native(event)); });
  }
  Status event_synchronize(EventHandle event) noexcept override {
    return in_context([&] { return cu_.cuEventSynchronize(native(event)); });
  }
  Status copy_to_device(DevicePtr destination, const void* source, std::size_t bytes,
                        StreamHandle stream) noexcept override {
    return in_context(
        [&] { return cu_.cuMemcpyHtoDAsync(destination, source, bytes, native(stream)); });
  }
  Status copy_to_host(void* destination, DevicePtr source, std::size_t bytes,
                      StreamHandle stream) noexcept override {
    return in_context(
        [&] { return cu_.cuMemcpyDtoHAsync(destination, source, bytes, native(stream)); });
  }
  Status copy_batch_to_device(const DevicePtr* destinations, const void* const* sources,
                              const std::size_t* sizes, std::size_t count,
                              StreamHandle stream) noexcept override {
    return copy_batch(destinations, sources, sizes, count, stream);
  }
  Status copy_batch_to_host(void* const* destinations, const DevicePtr* sources,
                            const std::size_t* sizes, std::size_t count,
                            StreamHandle stream) noexcept override {
    return copy_batch(destinations, sources, sizes, count, stream);
  }
  Status fill(DevicePtr destination, std::uint8_t value, std::size_t bytes,
              StreamHandle stream) noexcept override {
    return in_context(
        [&] { return cu_.cuMemsetD8Async(destination, value, bytes, native(stream)); });
  }
  Status digest(DevicePtr memory, std::size_t bytes, std::uint64_t* sums,
                StreamHandle stream) noexcept override {
    return in_context(
        [&] { return digest_kernel_.launch(cu_, memory, bytes, sums, native(stream)); });
  }
  Status digest_runs(const DeviceRun* runs, std::size_t count, std::uint64_t* sums,
                     StreamHandle stream) noexcept override {
    return in_context(
        [&] { return digest_kernel_.launch_runs(cu_, runs, count, sums, native(stream)); });
  }
  Status copy_to_device_digest(DevicePtr destination, const void* source, std::size_t bytes,
                               std::uint64_t* sums, StreamHandle stream) noexcept override {
    return in_context([&] {
      const Result result = cu_.cuMemcpyHtoDAsync(destination, source, bytes, native(stream));
      if (result != 0) return result;
      return digest_kernel_.launch(cu_, destination, bytes, sums, native(stream));
    });
  }

  std::int64_t now_ns() const noexcept override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  DeviceKind kind() const noexcept override { return DeviceKind::cuda; }
  int ordinal() const noexcept override { return ordinal_; }
  std::string status_name(Status status) const override {
    const char* name = nullptr;
    if (cu_.cuGetErrorName(static_cast<int>(status), &name) == 0 && name != nullptr) return name;
    return Driver::status_name(status);
  }

 private:
  Status give_access(DevicePtr address, std::size_t bytes, int access) noexcept {
    const AccessDescriptor descriptor{{location_type_device, ordinal_}, access};
    return in_context([&] { return cu_.cuMemSetAccess(address, bytes, &descriptor, 1); });
  }
  // The direction of each copy is the library's to see from its addresses. It takes the arrays as
  // ones that it could change, and does not.
  template <typename Destination, typename Source>
  Status copy_batch(const Destination* destinations, const Source* sources,
                    const std::size_t* sizes, std::size_t count, StreamHandle stream) noexcept {
    static_assert(sizeof(Destination) == sizeof(DevicePtr) && sizeof(Source) == sizeof(DevicePtr));
    return in_context([&] {
      CopyAttributes attributes{};  // without hints or flags
      attributes.source_access_order = source_access_in_stream_order;
      std::size_t from = 0;  // they are those of all copies
      auto* const to = reinterpret_cast<DevicePtr*>(const_cast<Destination*>(destinations));
      auto* const of = reinterpret_cast<DevicePtr*>(const_cast<Source*>(sources));
      auto* const bytes = const_cast<std::size_t*>(sizes);
      if (cu_.copy_batch != nullptr) {
        return cu_.copy_batch(to, of, bytes, count, &attributes, &from, 1, native(stream));
      }
      if (cu_.copy_batch_12080 != nullptr) {
        std::size_t failed = 0;
        return cu_.copy_batch_12080(to, of, bytes, count, &attributes, &from, 1, &failed,
                                    native(stream));
      }
      return static_cast<Result>(Status::not_supported);
    });
  }

  AllocationProperties page_properties() const noexcept {
    AllocationProperties properties{};
    properties.type = allocation_type_pinned;
    properties.handle_types = handle_type_posix_fd;
    properties.location = {location_type_device, ordinal_};
    return properties;
  }

  // Runs `call` so that it does not break the capture of a CUDA graph in another thread, as even a
  // look at an event does in a thread's own mode (see cuThreadExchangeStreamCaptureMode in cuda.h).
  // Nothing of ours is ever part of a capture. No mode helps where the whole context is waited for.
  template <typename Call>
  Status relaxed(Call call) noexcept {
    int mode = capture_mode_relaxed;
    const Result pushed = cu_.cuThreadExchangeStreamCaptureMode(&mode);
    if (pushed != 0) return status_of(pushed);
    const Status status = status_of(call());
    // As in leave_context(), what the call made is worth more than an error of what follows it.
    static_cast<void>(cu_.cuThreadExchangeStreamCaptureMode(&mode));
    return status;
  }
  // The same with the primary context current on this thread; puts back what was current.
  template <typename Call>
  Status in_context(Call call) noexcept {
    return relaxed([&] {
      Context previous = nullptr;
      const Status entered = enter_context(&previous);
      if (entered != Status::success) return static_cast<Result>(entered);
      const Result result = call();
      leave_context(previous);
      return result;
    });
  }
  Status enter_context(Context* previous) noexcept {
    if (const Result result = cu_.cuCtxGetCurrent(previous); result != 0) return status_of(result);
    const Status retained = retain_context();
    if (retained != Status::success || *previous == context_) return retained;
    return status_of(cu_.cuCtxSetCurrent(context_));
  }
  // After a success context_ is set, and never changes: it is read without the lock from then on.
  Status retain_context() noexcept {
    const std::lock_guard lock(mutex_);
    if (context_ != nullptr) return Status::success;
    Context own = nullptr;
    const Result result = cu_.cuDevicePrimaryCtxRetain(&own, device_);
    if (result == 0) context_ = own;
    return status_of(result);
  }
  void leave_context(Context previous) noexcept {
    // Fails only where that context was destroyed meanwhile, which is its owner's to see: with
    // the call reported as failed, whatever it made would be lost.
    if (previous != context_) static_cast<void>(cu_.cuCtxSetCurrent(previous));
  }

  const Symbols& cu_;
  int ordinal_;
  Device device_ = 0;
  std::mutex mutex_;
  Context context_ = nullptr;  // retained by the first call that needs it
  DigestKernel digest_kernel_;
};

}  // namespace
}  // namespace cuda

DriverPtr open_cuda_driver(int ordinal) { return std::make_shared<cuda::CudaDriver>(ordinal); }

}  // namespace gpupool

// A libcuda.so.1 for machines without a GPU: the calls that gpupool makes, as cuda.h declares and
// describes them, over the host driver. Refuses what cuda.h does not allow.
#include <bit>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "standin/cuda_names.h"
#include "standin/state.h"

using namespace gpupool;
using standin::State;

#define ENTER(call, needs_context)                                               \
  if (const int refused = State::get().enter(call, needs_context); refused != 0) \
  return answer(refused)

namespace {

constexpr int device_base = 100;  // a device is not its ordinal

CUresult answer(int code) { return static_cast<CUresult>(code); }
CUresult answer(Status status) { return static_cast<CUresult>(static_cast<int>(status)); }
CUresult invalid() { return answer(Status::invalid_value); }

DriverPtr host() { return State::get().host(); }

bool is_device(int ordinal) { return ordinal >= 0 && ordinal < standin::devices; }

bool possible(const CUmemAllocationProp* properties) {
  const int types = static_cast<int>(properties->requestedHandleTypes);
  return static_cast<int>(properties->type) == cuda::allocation_type_pinned &&
         static_cast<int>(properties->location.type) == cuda::location_type_device &&
         is_device(properties->location.id) && (types == 0 || types == cuda::handle_type_posix_fd);
}

// Does the work, then enters it in the books if it was done.
template <typename Note>
CUresult noted(Status status, Note note) {
  if (status == Status::success) State::get().note(note);
  return answer(status);
}

StreamHandle stream_of(CUstream stream) { return reinterpret_cast<StreamHandle>(stream); }
EventHandle event_of(CUevent event) { return reinterpret_cast<EventHandle>(event); }

}  // namespace

extern "C" {

CUresult CUDAAPI cuInit(unsigned int flags) {
  ENTER("cuInit", false);
  if (flags != 0) return invalid();
  State::get().initialize();
  return answer(0);
}

CUresult CUDAAPI cuGetErrorName(CUresult error, const char** name) {
  ENTER("cuGetErrorName", false);
  const auto status = static_cast<Status>(error);
  *name = nullptr;
  if (static_cast<int>(error) == standin::invalid_context) *name = "CUDA_ERROR_INVALID_CONTEXT";
  static std::mutex mutex;
  static std::map<int, std::string> names;  // names stay where they are
  std::lock_guard lock(mutex);
  const std::string& known =
      names.try_emplace(static_cast<int>(error), host()->status_name(status)).first->second;
  if (*name == nullptr && known.starts_with("CUDA_")) *name = known.c_str();
  return *name == nullptr ? invalid() : answer(0);
}

CUresult CUDAAPI cuDeviceGet(CUdevice* device, int ordinal) {
  ENTER("cuDeviceGet", false);
  if (!is_device(ordinal)) return answer(Status::invalid_device);
  *device = device_base + ordinal;
  return answer(0);
}

CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  ENTER("cuDevicePrimaryCtxRetain", false);
  if (!is_device(device - device_base)) return answer(Status::invalid_device);
  return answer(State::get().retain(reinterpret_cast<void**>(context), device - device_base));
}

CUresult CUDAAPI cuDevicePrimaryCtxRelease(CUdevice device) {
  ENTER("cuDevicePrimaryCtxRelease", false);
  if (!is_device(device - device_base)) return answer(Status::invalid_device);
  return answer(State::get().release(device - device_base));
}

CUresult CUDAAPI cuDevicePrimaryCtxGetState(CUdevice device, unsigned int* flags, int* active) {
  ENTER("cuDevicePrimaryCtxGetState", false);
  if (!is_device(device - device_base)) return answer(Status::invalid_device);
  *flags = 0;
  *active = State::get().retained(device - device_base);
  return answer(0);
}

CUresult CUDAAPI cuCtxSynchronize(void) {
  ENTER("cuCtxSynchronize", true);
  return answer(host()->context_synchronize());
}

CUresult CUDAAPI cuMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  ENTER("cuMemGetInfo", true);
  return answer(host()->memory_info(free_bytes, total_bytes));
}

CUresult CUDAAPI cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp* properties,
                                               CUmemAllocationGranularity_flags option) {
  ENTER("cuMemGetAllocationGranularity", false);
  if (!possible(properties) || static_cast<int>(option) > 1) return invalid();
  return answer(host()->page_granularity(bytes));
}

CUresult CUDAAPI cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes,
                             const CUmemAllocationProp* properties, unsigned long long flags) {
  ENTER("cuMemCreate", false);
  if (flags != 0 || !possible(properties)) return invalid();
  PageHandle page = 0;
  const int types = static_cast<int>(properties->requestedHandleTypes);
  return noted(host()->page_create(&page, bytes), [&](auto& books) {
    *handle = page;
    books.pages.emplace(page, types);
  });
}

CUresult CUDAAPI cuMemRelease(CUmemGenericAllocationHandle handle) {
  ENTER("cuMemRelease", false);
  return noted(host()->page_release(handle), [&](auto& books) { books.pages.erase(handle); });
}

CUresult CUDAAPI cuMemExportToShareableHandle(void* shareable, CUmemGenericAllocationHandle handle,
                                              CUmemAllocationHandleType type,
                                              unsigned long long flags) {
  ENTER("cuMemExportToShareableHandle", false);
  bool asked = false;
  State::get().note([&](auto& books) {
    const auto page = books.pages.find(handle);
    asked = page != books.pages.end() && page->second == static_cast<int>(type);
  });
  if (flags != 0 || static_cast<int>(type) != cuda::handle_type_posix_fd || !asked) {
    return invalid();
  }
  return answer(standin::export_without_flags(*host(), static_cast<int*>(shareable), handle));
}

CUresult CUDAAPI cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* handle, void* shared,
                                                CUmemAllocationHandleType type) {
  ENTER("cuMemImportFromShareableHandle", false);
  if (static_cast<int>(type) != cuda::handle_type_posix_fd) return invalid();
  PageHandle page = 0;
  const int fd = static_cast<int>(reinterpret_cast<std::intptr_t>(shared));
  return noted(host()->page_import(&page, fd), [&](auto& books) {
    *handle = page;
    books.pages.emplace(page, cuda::handle_type_posix_fd);
  });
}

CUresult CUDAAPI cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t alignment,
                                     CUdeviceptr, unsigned long long flags) {
  ENTER("cuMemAddressReserve", true);
  if (flags != 0 || (alignment != 0 && !std::has_single_bit(alignment))) return invalid();
  State::get().asked("cuMemAddressReserve", alignment);
  DevicePtr base = 0;
  return noted(host()->address_reserve(&base, bytes), [&](auto& books) {
    *address = base;
    books.reservations.emplace(base, bytes);
  });
}

CUresult CUDAAPI cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  ENTER("cuMemAddressFree", true);
  return noted(host()->address_free(address, bytes),
               [&](auto& books) { books.reservations.erase(address); });
}

CUresult CUDAAPI cuMemMap(CUdeviceptr address, size_t bytes, size_t offset,
                          CUmemGenericAllocationHandle handle, unsigned long long flags) {
  ENTER("cuMemMap", true);
  if (offset != 0 || flags != 0) return invalid();
  return noted(host()->map(address, bytes, handle),
               [&](auto& books) { books.mappings.emplace(address, bytes); });
}

CUresult CUDAAPI cuMemUnmap(CUdeviceptr address, size_t bytes) {
  ENTER("cuMemUnmap", true);
  return noted(host()->unmap(address, bytes), [&](auto& books) {
    books.mappings.erase(books.mappings.lower_bound(address),
                         books.mappings.lower_bound(address + bytes));
  });
}

CUresult CUDAAPI cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc* access,
                                size_t count) {
  ENTER("cuMemSetAccess", true);
  if (count != 1 || static_cast<int>(access->location.type) != cuda::location_type_device ||
      !is_device(access->location.id)) {
    return invalid();
  }
  switch (static_cast<int>(access->flags)) {
    case cuda::access_read_write: return answer(host()->set_access(address, bytes));
    case cuda::access_read: return answer(host()->set_read_only(address, bytes));
    default: return invalid();
  }
}

CUresult CUDAAPI cuMemHostRegister(void* memory, size_t bytes, unsigned int flags) {
  ENTER("cuMemHostRegister", true);
  if (flags > 15) return invalid();
  State::get().asked("cuMemHostRegister", flags);
  return noted(host()->host_register(memory, bytes),
               [&](auto& books) { books.registrations.emplace(memory, bytes); });
}

CUresult CUDAAPI cuMemHostUnregister(void* memory) {
  ENTER("cuMemHostUnregister", true);
  return noted(host()->host_unregister(memory),
               [&](auto& books) { books.registrations.erase(memory); });
}

CUresult CUDAAPI cuStreamCreate(CUstream* stream, unsigned int flags) {
  ENTER("cuStreamCreate", true);
  if (flags > cuda::stream_non_blocking) return invalid();
  State::get().asked("cuStreamCreate", flags);
  StreamHandle made = nullptr;
  return noted(host()->stream_create(&made), [&](auto& books) {
    *stream = reinterpret_cast<CUstream>(made);
    books.streams.insert(made);
  });
}

CUresult CUDAAPI cuStreamDestroy(CUstream stream) {
  ENTER("cuStreamDestroy", true);
  return noted(host()->stream_destroy(stream_of(stream)),
               [&](auto& books) { books.streams.erase(stream_of(stream)); });
}

CUresult CUDAAPI cuStreamSynchronize(CUstream stream) {
  ENTER("cuStreamSynchronize", true);
  return answer(host()->stream_synchronize(stream_of(stream)));
}

CUresult CUDAAPI cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
  ENTER("cuStreamWaitEvent", true);
  if (flags > 1) return invalid();
  return answer(host()->stream_wait_event(stream_of(stream), event_of(event)));
}

CUresult CUDAAPI cuEventCreate(CUevent* event, unsigned int flags) {
  ENTER("cuEventCreate", true);
  if (flags > 7) return invalid();
  State::get().asked("cuEventCreate", flags);
  EventHandle made = nullptr;
  return noted(host()->event_create(&made), [&](auto& books) {
    *event = reinterpret_cast<CUevent>(made);
    books.events.insert(made);
  });
}

CUresult CUDAAPI cuEventDestroy(CUevent event) {
  ENTER("cuEventDestroy", true);
  return noted(host()->event_destroy(event_of(event)),
               [&](auto& books) { books.events.erase(event_of(event)); });
}

CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) {
  ENTER("cuEventRecord", true);
  return answer(host()->event_record(event_of(event), stream_of(stream)));
}

CUresult CUDAAPI cuEventQuery(CUevent event) {
  ENTER("cuEventQuery", true);
  return answer(host()->event_query(event_of(event)));
}

CUresult CUDAAPI cuEventSynchronize(CUevent event) {
  ENTER("cuEventSynchronize", true);
  return answer(host()->event_synchronize(event_of(event)));
}

CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr destination, const void* source, size_t bytes,
                                   CUstream stream) {
  ENTER("cuMemcpyHtoDAsync", true);
  return answer(host()->copy_to_device(destination, source, bytes, stream_of(stream)));
}

CUresult CUDAAPI cuMemcpyDtoHAsync(void* destination, CUdeviceptr source, size_t bytes,
                                   CUstream stream) {
  ENTER("cuMemcpyDtoHAsync", true);
  return answer(host()->copy_to_host(destination, source, bytes, stream_of(stream)));
}

CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr destination, unsigned char value, size_t bytes,
                                 CUstream stream) {
  ENTER("cuMemsetD8Async", true);
  return answer(host()->fill(destination, value, bytes, stream_of(stream)));
}

}  // extern "C"

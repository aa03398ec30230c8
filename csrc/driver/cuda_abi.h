// The part of the CUDA driver's binary interface that gpupool calls, so that no toolkit is needed
// to build. tests/cpp/cuda_abi_test.cpp holds every line against cuda.h where a toolkit is present.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gpupool::cuda {

using Result = int;
using Device = int;
using Context = void*;
using Stream = void*;
using Event = void*;
using Module = void*;
using Function = void*;

inline constexpr int allocation_type_pinned = 1;
inline constexpr int handle_type_posix_fd = 1;
inline constexpr int location_type_device = 1;
inline constexpr int access_read = 1;
inline constexpr int access_read_write = 3;
inline constexpr int granularity_minimum = 0;
inline constexpr unsigned stream_non_blocking = 1;
inline constexpr unsigned event_blocking_sync = 1;
inline constexpr unsigned event_disable_timing = 2;
inline constexpr unsigned host_register_flags = 3;  // portable, and mapped for kernels
inline constexpr int source_access_in_stream_order = 1;
inline constexpr int capture_mode_global = 0;
inline constexpr int capture_mode_relaxed = 2;

struct Location {
  int type;
  int id;
};

struct AllocationProperties {
  int type;
  int handle_types;
  Location location;
  void* win32_metadata;
  struct {
    unsigned char compression;
    unsigned char gpu_direct_rdma_capable;
    unsigned short usage;
    unsigned char reserved[4];
  } flags;
};

struct AccessDescriptor {
  Location location;
  int flags;
};

// Of copies in a batch.
struct CopyAttributes {
  int source_access_order;
  Location source_hint;  // both for managed and pageable memory alone
  Location destination_hint;
  unsigned flags;
};

// X(CUDA name, CUDA version that gave it its present form, (parameters))
#define GPUPOOL_CUDA_SYMBOLS(X)                                                                   \
  X(cuInit, 2000, (unsigned flags))                                                               \
  X(cuGetErrorName, 6000, (Result result, const char** name))                                     \
  X(cuDeviceGet, 2000, (Device * device, int ordinal))                                            \
  X(cuDevicePrimaryCtxRetain, 7000, (Context * context, Device device))                           \
  X(cuDevicePrimaryCtxRelease, 11000, (Device device))                                            \
  X(cuCtxGetCurrent, 4000, (Context * context))                                                   \
  X(cuCtxSetCurrent, 4000, (Context context))                                                     \
  X(cuCtxSynchronize, 2000, ())                                                                   \
  X(cuThreadExchangeStreamCaptureMode, 10010, (int* mode))                                        \
  X(cuMemGetInfo, 3020, (std::size_t* free_bytes, std::size_t* total_bytes))                      \
  X(cuMemGetAllocationGranularity, 10020,                                                         \
    (std::size_t* bytes, const AllocationProperties* properties, int option))                     \
  X(cuMemCreate, 10020,                                                                           \
    (std::uint64_t* handle, std::size_t bytes, const AllocationProperties* properties,            \
     unsigned long long flags))                                                                   \
  X(cuMemRelease, 10020, (std::uint64_t handle))                                                  \
  X(cuMemExportToShareableHandle, 10020,                                                          \
    (void* shareable, std::uint64_t handle, int handle_type, unsigned long long flags))           \
  X(cuMemImportFromShareableHandle, 10020,                                                        \
    (std::uint64_t* handle, void* os_handle, int handle_type))                                    \
  X(cuMemAddressReserve, 10020,                                                                   \
    (std::uint64_t* address, std::size_t bytes, std::size_t alignment, std::uint64_t hint,        \
     unsigned long long flags))                                                                   \
  X(cuMemAddressFree, 10020, (std::uint64_t address, std::size_t bytes))                          \
  X(cuMemMap, 10020,                                                                              \
    (std::uint64_t address, std::size_t bytes, std::size_t offset, std::uint64_t handle,          \
     unsigned long long flags))                                                                   \
  X(cuMemUnmap, 10020, (std::uint64_t address, std::size_t bytes))                                \
  X(cuMemSetAccess, 10020,                                                                        \
    (std::uint64_t address, std::size_t bytes, const AccessDescriptor* descriptors,               \
     std::size_t count))                                                                          \
  X(cuMemHostRegister, 6050, (void* memory, std::size_t bytes, unsigned flags))                   \
  X(cuMemHostUnregister, 4000, (void* memory))                                                    \
  X(cuStreamCreate, 2000, (Stream * stream, unsigned flags))                                      \
  X(cuStreamDestroy, 4000, (Stream stream))                                                       \
  X(cuStreamSynchronize, 2000, (Stream stream))                                                   \
  X(cuStreamWaitEvent, 3020, (Stream stream, Event event, unsigned flags))                        \
  X(cuEventCreate, 2000, (Event * event, unsigned flags))                                         \
  X(cuEventDestroy, 4000, (Event event))                                                          \
  X(cuEventRecord, 2000, (Event event, Stream stream))                                            \
  X(cuEventQuery, 2000, (Event event))                                                            \
  X(cuEventSynchronize, 2000, (Event event))                                                      \
  X(cuMemcpyHtoDAsync, 3020,                                                                      \
    (std::uint64_t destination, const void* source, std::size_t bytes, Stream stream))            \
  X(cuMemcpyDtoHAsync, 3020,                                                                      \
    (void* destination, std::uint64_t source, std::size_t bytes, Stream stream))                  \
  X(cuMemsetD8Async, 3020,                                                                        \
    (std::uint64_t destination, unsigned char value, std::size_t bytes, Stream stream))           \
  X(cuMemHostGetDevicePointer, 3020, (std::uint64_t* address, void* memory, unsigned flags))      \
  X(cuModuleLoadData, 2000, (Module * module, const void* image))                                 \
  X(cuModuleUnload, 2000, (Module module))                                                        \
  X(cuModuleGetFunction, 2000, (Function * function, Module module, const char* name))            \
  X(cuLaunchKernel, 4000,                                                                         \
    (Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,      \
     unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream stream, void** parameters, \
     void** extra))

// X(field, CUDA name, CUDA version that gave it this form, (parameters)): calls that a driver may
// do without. cuGetProcAddress knows no form newer than the driver. CUDA 13.0 took the place for
// the index of the copy that failed out of this one.
#define GPUPOOL_CUDA_LATER_SYMBOLS(X)                                                            \
  X(copy_batch, cuMemcpyBatchAsync, 13000,                                                       \
    (std::uint64_t* destinations, std::uint64_t* sources, std::size_t* sizes, std::size_t count, \
     CopyAttributes* attributes, std::size_t* attributes_from, std::size_t attributes_count,     \
     Stream stream))                                                                             \
  X(copy_batch_12080, cuMemcpyBatchAsync, 12080,                                                 \
    (std::uint64_t* destinations, std::uint64_t* sources, std::size_t* sizes, std::size_t count, \
     CopyAttributes* attributes, std::size_t* attributes_from, std::size_t attributes_count,     \
     std::size_t* failed, Stream stream))

struct Symbols {
#define GPUPOOL_CUDA_POINTER(name, version, params) Result(*name) params = nullptr;
  GPUPOOL_CUDA_SYMBOLS(GPUPOOL_CUDA_POINTER)
#undef GPUPOOL_CUDA_POINTER
#define GPUPOOL_CUDA_LATER_POINTER(field, name, version, params) Result(*field) params = nullptr;
  GPUPOOL_CUDA_LATER_SYMBOLS(GPUPOOL_CUDA_LATER_POINTER)
#undef GPUPOOL_CUDA_LATER_POINTER
};

// Those of libcuda.so.1, loaded at the first call. Throws std::runtime_error with what is missing.
const Symbols& symbols();

using GetProcAddress = Result (*)(const char* symbol, void** function, int cuda_version,
                                  std::uint64_t flags, int* symbol_status);

}  // namespace gpupool::cuda

// csrc/driver/cuda_abi.h against the toolkit's cuda.h: that this compiles is the test.
#include <cuda.h>
#if __has_include(<cudaTypedefs.h>)
#include <cudaTypedefs.h>
#define HAS_TYPEDEFS
#endif

#include <cstddef>
#include <type_traits>

#include "check.h"
#include "driver/cuda_abi.h"
#include "driver/driver.h"

namespace {

using namespace gpupool;

// Two types are passed alike: pointers, or integers and enumerations of one size.
template <typename Ours, typename Theirs>
constexpr bool alike() {
  if constexpr (std::is_pointer_v<Ours> || std::is_pointer_v<Theirs>) {
    return std::is_pointer_v<Ours> && std::is_pointer_v<Theirs>;
  } else {
    constexpr auto whole = [](auto type) {
      using T = typename decltype(type)::type;
      return std::is_integral_v<T> || std::is_enum_v<T>;
    };
    return whole(std::type_identity<Ours>{}) && whole(std::type_identity<Theirs>{}) &&
           sizeof(Ours) == sizeof(Theirs);
  }
}

template <typename Ours, typename Theirs>
struct SameCall : std::false_type {};
template <typename R, typename... A, typename S, typename... B>
  requires(sizeof...(A) == sizeof...(B))
struct SameCall<R (*)(A...), S (*)(B...)>
    : std::bool_constant<alike<R, S>() && (... && alike<A, B>())> {};

// cuda.h renames a call to its present form by a macro, and so the names in Symbols too.
#define SAME_CALL(name, version, params)                                           \
  static_assert(SameCall<decltype(cuda::Symbols::name), decltype(&::name)>::value, \
                "its parameters are not those in cuda.h");
GPUPOOL_CUDA_SYMBOLS(SAME_CALL)

#ifdef HAS_TYPEDEFS
// And the version we ask for is one that has these parameters.
#define SAME_VERSION(name, version, params)                                       \
  static_assert(SameCall<cuda::Result(*) params, PFN_##name##_v##version>::value, \
                "the version asked for has other parameters");
namespace cuda_types {
using namespace gpupool::cuda;
GPUPOOL_CUDA_SYMBOLS(SAME_VERSION)
}  // namespace cuda_types
#endif

#if CUDA_VERSION >= 13000
static_assert(
    SameCall<decltype(cuda::Symbols::copy_batch), decltype(&::cuMemcpyBatchAsync)>::value);
#ifdef HAS_TYPEDEFS
#define SAME_LATER_VERSION(field, name, version, params)                          \
  static_assert(SameCall<cuda::Result(*) params, PFN_##name##_v##version>::value, \
                "the version asked for has other parameters");
namespace cuda_later_types {
using namespace gpupool::cuda;
GPUPOOL_CUDA_LATER_SYMBOLS(SAME_LATER_VERSION)
}  // namespace cuda_later_types
#endif
static_assert(sizeof(cuda::CopyAttributes) == sizeof(CUmemcpyAttributes));
#define SAME_ATTRIBUTE(ours, theirs) \
  static_assert(offsetof(cuda::CopyAttributes, ours) == offsetof(CUmemcpyAttributes, theirs))
SAME_ATTRIBUTE(source_access_order, srcAccessOrder);
SAME_ATTRIBUTE(source_hint, srcLocHint);
SAME_ATTRIBUTE(destination_hint, dstLocHint);
SAME_ATTRIBUTE(flags, flags);
static_assert(cuda::source_access_in_stream_order == CU_MEMCPY_SRC_ACCESS_ORDER_STREAM);
#endif

using Theirs = CUmemAllocationProp;
using Ours = cuda::AllocationProperties;
static_assert(sizeof(Ours) == sizeof(Theirs) && alignof(Ours) == alignof(Theirs));
static_assert(offsetof(Ours, type) == offsetof(Theirs, type));
static_assert(offsetof(Ours, handle_types) == offsetof(Theirs, requestedHandleTypes));
static_assert(offsetof(Ours, location) == offsetof(Theirs, location));
static_assert(offsetof(Ours, win32_metadata) == offsetof(Theirs, win32HandleMetaData));
static_assert(offsetof(Ours, flags) == offsetof(Theirs, allocFlags));
static_assert(sizeof(Ours::flags) == sizeof(Theirs::allocFlags));

static_assert(sizeof(cuda::Location) == sizeof(CUmemLocation));
static_assert(offsetof(cuda::Location, type) == offsetof(CUmemLocation, type));
static_assert(offsetof(cuda::Location, id) == offsetof(CUmemLocation, id));
static_assert(sizeof(cuda::AccessDescriptor) == sizeof(CUmemAccessDesc));
static_assert(offsetof(cuda::AccessDescriptor, location) == offsetof(CUmemAccessDesc, location));
static_assert(offsetof(cuda::AccessDescriptor, flags) == offsetof(CUmemAccessDesc, flags));

static_assert(cuda::allocation_type_pinned == CU_MEM_ALLOCATION_TYPE_PINNED);
static_assert(cuda::handle_type_posix_fd == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
static_assert(cuda::location_type_device == CU_MEM_LOCATION_TYPE_DEVICE);
static_assert(cuda::access_read == CU_MEM_ACCESS_FLAGS_PROT_READ);
static_assert(cuda::access_read_write == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
static_assert(cuda::granularity_minimum == CU_MEM_ALLOC_GRANULARITY_MINIMUM);
static_assert(cuda::stream_non_blocking == CU_STREAM_NON_BLOCKING);
static_assert(cuda::event_blocking_sync == CU_EVENT_BLOCKING_SYNC);
static_assert(cuda::event_disable_timing == CU_EVENT_DISABLE_TIMING);
static_assert(cuda::capture_mode_global == CU_STREAM_CAPTURE_MODE_GLOBAL);
static_assert(cuda::capture_mode_relaxed == CU_STREAM_CAPTURE_MODE_RELAXED);
static_assert(cuda::host_register_flags ==
              (CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP));
static_assert(sizeof(DevicePtr) == sizeof(CUdeviceptr));
static_assert(sizeof(PageHandle) == sizeof(CUmemGenericAllocationHandle));

#define SAME_STATUS(ours, theirs) static_assert(static_cast<int>(Status::ours) == theirs)
SAME_STATUS(success, CUDA_SUCCESS);
SAME_STATUS(invalid_value, CUDA_ERROR_INVALID_VALUE);
SAME_STATUS(out_of_memory, CUDA_ERROR_OUT_OF_MEMORY);
SAME_STATUS(not_initialized, CUDA_ERROR_NOT_INITIALIZED);
SAME_STATUS(no_device, CUDA_ERROR_NO_DEVICE);
SAME_STATUS(invalid_device, CUDA_ERROR_INVALID_DEVICE);
SAME_STATUS(invalid_handle, CUDA_ERROR_INVALID_HANDLE);
SAME_STATUS(not_found, CUDA_ERROR_NOT_FOUND);
SAME_STATUS(not_ready, CUDA_ERROR_NOT_READY);
SAME_STATUS(illegal_address, CUDA_ERROR_ILLEGAL_ADDRESS);
SAME_STATUS(host_memory_already_registered, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
SAME_STATUS(host_memory_not_registered, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
SAME_STATUS(not_supported, CUDA_ERROR_NOT_SUPPORTED);
SAME_STATUS(unknown, CUDA_ERROR_UNKNOWN);

}  // namespace

TEST(the_binary_interface_is_that_of_cuda_h) { CHECK(CUDA_VERSION >= 12000); }

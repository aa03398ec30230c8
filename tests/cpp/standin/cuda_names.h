// The names of cuda.h that the stand-in is written in: the toolkit's own where there is one, so
// that the compiler holds every definition against its prototype, and else those of the list in
// csrc/driver/cuda_abi.h.
#pragma once

#include "driver/cuda_abi.h"

#ifdef GPUPOOL_HAS_CUDA_H
#include <cuda.h>
#if CUDA_VERSION < 13000  // its header has this call in an older form, or not at all
#undef cuMemcpyBatchAsync
#define cuMemcpyBatchAsync gpupool_standin_copy_batch
#define CUmemcpyAttributes gpupool::cuda::CopyAttributes
#define srcAccessOrder source_access_order
#endif
#else

using CUresult = gpupool::cuda::Result;
using CUdevice = gpupool::cuda::Device;
using CUcontext = gpupool::cuda::Context;
using CUstream = gpupool::cuda::Stream;
using CUevent = gpupool::cuda::Event;
using CUmodule = gpupool::cuda::Module;
using CUfunction = gpupool::cuda::Function;
using CUdeviceptr = std::uint64_t;
using CUstreamCaptureMode = int;
using CUdevice_attribute = int;
using CUmemGenericAllocationHandle = std::uint64_t;
using CUmemAllocationHandleType = int;
using CUmemAllocationGranularity_flags = int;
using CUmemAllocationProp = gpupool::cuda::AllocationProperties;
using CUmemAccessDesc = gpupool::cuda::AccessDescriptor;
using CUmemcpyAttributes = gpupool::cuda::CopyAttributes;
using CUdriverProcAddressQueryResult = int;
using cuuint64_t = std::uint64_t;
#define requestedHandleTypes handle_types
#define srcAccessOrder source_access_order
#define CUDAAPI
#define cuGetProcAddress cuGetProcAddress_v2

// A definition that does not fit the list is a conflict with these.
extern "C" {
namespace gpupool::cuda {
#define GPUPOOL_DECLARE_CUDA_CALL(name, version, params) Result name params;
GPUPOOL_CUDA_SYMBOLS(GPUPOOL_DECLARE_CUDA_CALL)
#undef GPUPOOL_DECLARE_CUDA_CALL
Result cuDriverGetVersion(int* version);
Result cuDeviceGetName(char* name, int bytes, Device device);
Result cuDeviceGetAttribute(int* value, int attribute, Device device);
Result cuDevicePrimaryCtxGetState(Device device, unsigned* flags, int* active);
Result cuMemcpyBatchAsync(std::uint64_t* destinations, std::uint64_t* sources, std::size_t* sizes,
                          std::size_t count, CopyAttributes* attributes,
                          std::size_t* attributes_from, std::size_t attributes_count,
                          Stream stream);
Result cuGetProcAddress(const char* symbol, void** function, int cuda_version, std::uint64_t flags,
                        int* symbol_status);
}  // namespace gpupool::cuda
}
using namespace gpupool::cuda;

#endif

// The same as CUDA 12.8 has it, under a name of the stand-in's own: a header has one form alone.
extern "C" CUresult CUDAAPI gpupool_standin_copy_batch_12080(
    CUdeviceptr* destinations, CUdeviceptr* sources, size_t* sizes, size_t count,
    CUmemcpyAttributes* attributes, size_t* attributes_from, size_t attributes_count,
    size_t* failed, CUstream stream);

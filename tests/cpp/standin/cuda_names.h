// The names of cuda.h that the stand-in is written in: the toolkit's own where there is one, so
// that the compiler holds every definition against its prototype, and else those of the list in
// csrc/driver/cuda_abi.h.
#pragma once

#include "driver/cuda_abi.h"

#ifdef GPUPOOL_HAS_CUDA_H
#include <cuda.h>
#else

using CUresult = gpupool::cuda::Result;
using CUdevice = gpupool::cuda::Device;
using CUcontext = gpupool::cuda::Context;
using CUstream = gpupool::cuda::Stream;
using CUevent = gpupool::cuda::Event;
using CUdeviceptr = std::uint64_t;
using CUstreamCaptureMode = int;
using CUmemGenericAllocationHandle = std::uint64_t;
using CUmemAllocationHandleType = int;
using CUmemAllocationGranularity_flags = int;
using CUmemAllocationProp = gpupool::cuda::AllocationProperties;
using CUmemAccessDesc = gpupool::cuda::AccessDescriptor;
using CUdriverProcAddressQueryResult = int;
using cuuint64_t = std::uint64_t;
#define requestedHandleTypes handle_types
#define CUDAAPI
#define cuGetProcAddress cuGetProcAddress_v2

// A definition that does not fit the list is a conflict with these.
extern "C" {
namespace gpupool::cuda {
#define GPUPOOL_DECLARE_CUDA_CALL(name, version, params) Result name params;
GPUPOOL_CUDA_SYMBOLS(GPUPOOL_DECLARE_CUDA_CALL)
#undef GPUPOOL_DECLARE_CUDA_CALL
Result cuGetProcAddress(const char* symbol, void** function, int cuda_version, std::uint64_t flags,
                        int* symbol_status);
}  // namespace gpupool::cuda
}
using namespace gpupool::cuda;

#endif

// Digests of device memory. tools/ptx.py compiles this to digest_kernel.ptx.inc, which is what the
// driver is given, so that nobody needs nvcc to build gpupool.
#include "driver/digest_kernel.h"

using namespace gpupool::digest_kernel;

// The sum of what the threads of a block have, in its first thread.
__device__ inline std::uint64_t sum_of_block(std::uint64_t sum) {
  __shared__ std::uint64_t of_warp[threads / 32];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffff, sum, step);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return 0;
  sum = of_warp[threadIdx.x];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffff, sum, step);
  return sum;
}

// One block for each piece, the last of which may be shorter: sums[i] becomes the digest of the
// i-th `piece_bytes` of memory.
extern "C" __global__ void __launch_bounds__(threads)
    gpupool_digest(std::uint64_t* sums, const unsigned char* memory, std::uint64_t bytes,
                   std::uint64_t piece_bytes) {
  const std::uint64_t begin = blockIdx.x * piece_bytes;
  const std::uint64_t left = bytes - begin;
  const std::uint64_t sum =
      sum_of_block(share(memory + begin, left < piece_bytes ? left : piece_bytes, threadIdx.x));
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// One block for each run: sums[i] becomes its digest.
extern "C" __global__ void __launch_bounds__(threads)
    gpupool_digest_runs(std::uint64_t* sums, const Run* runs) {
  const Run run = runs[blockIdx.x];
  const auto* const memory = reinterpret_cast<const unsigned char*>(run.address);
  const std::uint64_t sum = sum_of_block(share(memory, run.bytes, threadIdx.x));
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

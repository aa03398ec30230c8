// Digests of device memory. tools/ptx.py compiles this to digest_kernel.ptx.inc, which is what the
// driver is given, so that nobody needs nvcc to build gpupool.
#include "driver/digest_kernel.h"

using namespace gpupool::digest_kernel;

// One block for each piece, the last of which may be shorter: sums[i] becomes the digest of the
// i-th `piece_bytes` of memory.
extern "C" __global__ void __launch_bounds__(threads)
    gpupool_digest(std::uint64_t* sums, const unsigned char* memory, std::uint64_t bytes,
                   std::uint64_t piece_bytes) {
  const std::uint64_t begin = blockIdx.x * piece_bytes;
  const std::uint64_t left = bytes - begin;
  std::uint64_t sum = share(memory + begin, left < piece_bytes ? left : piece_bytes, threadIdx.x);

  __shared__ std::uint64_t of_warp[threads / 32];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffff, sum, step);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = of_warp[threadIdx.x];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffff, sum, step);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

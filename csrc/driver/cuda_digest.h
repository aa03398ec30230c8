// The kernels that digest device memory, in the primary context.
#pragma once

#include <mutex>

#include "driver/cuda_abi.h"
#include "driver/driver.h"

namespace gpupool::cuda {

// What tools/ptx.py made of digest_kernel.cu.
extern const char digest_kernel_ptx[];

// Thread safe. Loaded by the first launch.
class DigestKernel {
 public:
  // With the context current; as Driver::digest.
  Result launch(const Symbols& cu, DevicePtr memory, std::size_t bytes, std::uint64_t* sums,
                Stream stream) noexcept;
  // The same as Driver::digest_runs.
  Result launch_runs(const Symbols& cu, const DeviceRun* runs, std::size_t count,
                     std::uint64_t* sums, Stream stream) noexcept;
  // With the context current, when no launch follows nor is under way.
  Result unload(const Symbols& cu) noexcept;

 private:
  Result load(const Symbols& cu, Function& function, const char* name) noexcept;

  std::mutex mutex_;
  Module module_ = nullptr;
  Function of_pieces_ = nullptr;
  Function of_runs_ = nullptr;
};

}  // namespace gpupool::cuda

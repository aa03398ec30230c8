#include "driver/cuda_digest.h"

#include <utility>

#include "driver/digest_kernel.h"

namespace gpupool::cuda {

const char digest_kernel_ptx[] =
#include "driver/digest_kernel.ptx.inc"
    ;

Result DigestKernel::load(const Symbols& cu) noexcept {
  const std::lock_guard lock(mutex_);
  // What was refused is asked for again by the next launch.
  if (module_ == nullptr) {
    if (const Result result = cu.cuModuleLoadData(&module_, digest_kernel_ptx); result != 0) {
      module_ = nullptr;
      return result;
    }
  }
  if (function_ == nullptr) {
    if (const Result result = cu.cuModuleGetFunction(&function_, module_, "gpupool_digest");
        result != 0) {
      function_ = nullptr;
      return result;
    }
  }
  return 0;
}

Result DigestKernel::unload(const Symbols& cu) noexcept {
  function_ = nullptr;
  const Module module = std::exchange(module_, nullptr);
  return module == nullptr ? 0 : cu.cuModuleUnload(module);
}

Result DigestKernel::launch(const Symbols& cu, DevicePtr memory, std::size_t bytes,
                            std::uint64_t* sums, Stream stream) noexcept {
  const std::size_t pieces =
      bytes / digest_piece_bytes + static_cast<std::size_t>(bytes % digest_piece_bytes != 0);
  // A grid of 2^31 - 1 blocks is 4 PiB.
  if (pieces == 0) return static_cast<Result>(Status::invalid_value);
  if (const Result result = load(cu); result != 0) return result;
  // Where the device sees the pinned memory: at the same address on most systems, not on all.
  std::uint64_t sums_on_device = 0;
  if (const Result result = cu.cuMemHostGetDevicePointer(&sums_on_device, sums, 0); result != 0) {
    return result;
  }
  std::uint64_t size = bytes, piece = digest_piece_bytes;
  void* parameters[] = {&sums_on_device, &memory, &size, &piece};
  return cu.cuLaunchKernel(function_, static_cast<unsigned>(pieces), 1, 1, digest_kernel::threads,
                           1, 1, 0, stream, parameters, nullptr);
}

}  // namespace gpupool::cuda

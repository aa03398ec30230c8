#include "driver/cuda_digest.h"

#include <cstddef>
#include <utility>

#include "driver/digest_kernel.h"

namespace gpupool::cuda {

const char digest_kernel_ptx[] =
#include "driver/digest_kernel.ptx.inc"
    ;

namespace {

// The kernel sees the caller's table as it is.
static_assert(sizeof(DeviceRun) == sizeof(digest_kernel::Run) &&
              offsetof(DeviceRun, address) == offsetof(digest_kernel::Run, address) &&
              offsetof(DeviceRun, bytes) == offsetof(digest_kernel::Run, bytes));

// Of blocks in a grid.
constexpr std::size_t grid_max = 0x7fffffff;

}  // namespace

Result DigestKernel::load(const Symbols& cu, Function& function, const char* name) noexcept {
  const std::lock_guard lock(mutex_);
  // What was refused is asked for again by the next launch.
  if (module_ == nullptr) {
    if (const Result result = cu.cuModuleLoadData(&module_, digest_kernel_ptx); result != 0) {
      module_ = nullptr;
      return result;
    }
  }
  if (function == nullptr) {
    if (const Result result = cu.cuModuleGetFunction(&function, module_, name); result != 0) {
      function = nullptr;
      return result;
    }
  }
  return 0;
}

Result DigestKernel::unload(const Symbols& cu) noexcept {
  of_pieces_ = of_runs_ = nullptr;
  const Module module = std::exchange(module_, nullptr);
  return module == nullptr ? 0 : cu.cuModuleUnload(module);
}

Result DigestKernel::launch(const Symbols& cu, DevicePtr memory, std::size_t bytes,
                            std::uint64_t* sums, Stream stream) noexcept {
  const std::size_t pieces =
      bytes / digest_piece_bytes + static_cast<std::size_t>(bytes % digest_piece_bytes != 0);
  // A full grid is 4 PiB.
  if (pieces == 0) return static_cast<Result>(Status::invalid_value);
  if (const Result result = load(cu, of_pieces_, "gpupool_digest"); result != 0) return result;
  // Where the device sees the pinned memory: at the same address on most systems, not on all.
  std::uint64_t sums_on_device = 0;
  if (const Result result = cu.cuMemHostGetDevicePointer(&sums_on_device, sums, 0); result != 0) {
    return result;
  }
  std::uint64_t size = bytes, piece = digest_piece_bytes;
  void* parameters[] = {&sums_on_device, &memory, &size, &piece};
  return cu.cuLaunchKernel(of_pieces_, static_cast<unsigned>(pieces), 1, 1, digest_kernel::threads,
                           1, 1, 0, stream, parameters, nullptr);
}

Result DigestKernel::launch_runs(const Symbols& cu, const DeviceRun* runs, std::size_t count,
                                 std::uint64_t* sums, Stream stream) noexcept {
  if (count == 0 || count > grid_max) return static_cast<Result>(Status::invalid_value);
  if (const Result result = load(cu, of_runs_, "gpupool_digest_runs"); result != 0) return result;
  std::uint64_t sums_on_device = 0, runs_on_device = 0;
  if (const Result result = cu.cuMemHostGetDevicePointer(&sums_on_device, sums, 0); result != 0) {
    return result;
  }
  // The library takes it as memory that it could change, and does not.
  if (const Result result =
          cu.cuMemHostGetDevicePointer(&runs_on_device, const_cast<DeviceRun*>(runs), 0);
      result != 0) {
    return result;
  }
  void* parameters[] = {&sums_on_device, &runs_on_device};
  return cu.cuLaunchKernel(of_runs_, static_cast<unsigned>(count), 1, 1, digest_kernel::threads, 1,
                           1, 0, stream, parameters, nullptr);
}

}  // namespace gpupool::cuda

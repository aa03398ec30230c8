// Modules and launches, as far as gpupool asks for them: its two kernels, which run as the same C++
// that nvcc compiles for a device, and those of its probe.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <string_view>
#include <vector>

#include "driver/cuda_digest.h"
#include "driver/digest_kernel.h"
#include "driver/host.h"
#include "standin/cuda_names.h"
#include "standin/probe.h"
#include "standin/state.h"

using namespace gpupool;
using standin::State;

#define ENTER(call)                                                     \
  if (const int refused = State::get().enter(call, true); refused != 0) \
  return static_cast<CUresult>(refused)

namespace {

// Handles of the one module and the functions that there are.
char the_module, of_pieces, of_runs;

CUresult answer(Status status) { return static_cast<CUresult>(static_cast<int>(status)); }

std::uint64_t digest_of(std::uint64_t memory, std::uint64_t bytes) {
  std::uint64_t sum = 0;
  for (unsigned thread = 0; thread < digest_kernel::threads; ++thread) {
    sum += digest_kernel::share(reinterpret_cast<const unsigned char*>(memory), bytes, thread);
  }
  return sum;
}

// The table is read when it runs, and says now what it may touch.
Status digest_runs(host::HostDriver& host, CUstream stream, unsigned count, std::uint64_t sums,
                   std::uint64_t table) {
  const auto* const runs = reinterpret_cast<const digest_kernel::Run*>(table);
  std::vector<host::DeviceRange> touched;
  for (unsigned i = 0; i < count; ++i) touched.push_back({runs[i].address, runs[i].bytes});
  return host.launch(reinterpret_cast<StreamHandle>(stream), touched, [=] {
    for (unsigned i = 0; i < count; ++i) {
      reinterpret_cast<std::uint64_t*>(sums)[i] = digest_of(runs[i].address, runs[i].bytes);
    }
  });
}

}  // namespace

extern "C" {

CUresult CUDAAPI cuMemHostGetDevicePointer(CUdeviceptr* address, void* memory, unsigned int flags) {
  ENTER("cuMemHostGetDevicePointer");
  bool registered = false;
  State::get().note([&](auto& books) {
    const auto behind = books.registrations.upper_bound(memory);
    if (behind == books.registrations.begin()) return;
    const auto& [begin, bytes] = *std::prev(behind);
    registered = memory < static_cast<std::byte*>(begin) + bytes;
  });
  if (flags != 0 || !registered) return answer(Status::invalid_value);
  *address = reinterpret_cast<CUdeviceptr>(memory);
  return answer(Status::success);
}

CUresult CUDAAPI cuModuleLoadData(CUmodule* module, const void* image) {
  ENTER("cuModuleLoadData");
  const std::string_view text = static_cast<const char*>(image);
  if (!text.starts_with(".version ")) return answer(Status::invalid_value);
  *module = reinterpret_cast<CUmodule>(&the_module);
  State::get().note([](auto& books) { ++books.modules; });
  return answer(Status::success);
}

CUresult CUDAAPI cuModuleUnload(CUmodule module) {
  ENTER("cuModuleUnload");
  if (module != reinterpret_cast<CUmodule>(&the_module)) return answer(Status::invalid_handle);
  State::get().note([](auto& books) { --books.modules; });
  return answer(Status::success);
}

CUresult CUDAAPI cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  ENTER("cuModuleGetFunction");
  if (module != reinterpret_cast<CUmodule>(&the_module)) return answer(Status::invalid_handle);
  if (void* const found = standin::probe_kernel(name); found != nullptr) {
    *function = static_cast<CUfunction>(found);
    return answer(Status::success);
  }
  const std::string entry = ".entry " + std::string(name) + "(";
  if (std::strstr(cuda::digest_kernel_ptx, entry.c_str()) == nullptr) {
    return answer(Status::not_found);
  }
  const bool runs = std::string_view(name) == "gpupool_digest_runs";
  *function = reinterpret_cast<CUfunction>(runs ? &of_runs : &of_pieces);
  return answer(Status::success);
}

CUresult CUDAAPI cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                                unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                                unsigned int block_z, unsigned int shared_bytes, CUstream stream,
                                void** parameters, void** extra) {
  ENTER("cuLaunchKernel");
  if (standin::is_probe_kernel(function)) {
    if (grid_x == 0 || block_x == 0 || parameters == nullptr || extra != nullptr) {
      return answer(Status::invalid_value);
    }
    return answer(
        standin::launch_probe_kernel(function, reinterpret_cast<StreamHandle>(stream), parameters));
  }
  const bool runs = function == reinterpret_cast<CUfunction>(&of_runs);
  if (!runs && function != reinterpret_cast<CUfunction>(&of_pieces)) {
    return answer(Status::invalid_handle);
  }
  if (grid_x == 0 || grid_y != 1 || grid_z != 1 || block_x != digest_kernel::threads ||
      block_y != 1 || block_z != 1 || shared_bytes != 0 || parameters == nullptr ||
      extra != nullptr) {
    return answer(Status::invalid_value);
  }
  const auto host = std::dynamic_pointer_cast<host::HostDriver>(State::get().host());
  // Copied now, as a launch does: the caller's variables are gone when it runs.
  std::uint64_t values[4];
  for (int i = 0; i < (runs ? 2 : 4); ++i) std::memcpy(&values[i], parameters[i], sizeof values[i]);
  if (runs) return answer(digest_runs(*host, stream, grid_x, values[0], values[1]));
  const auto [sums, memory, bytes, piece_bytes] = values;
  const auto kernel = [=] {
    for (unsigned block = 0; block < grid_x; ++block) {
      const std::uint64_t begin = block * piece_bytes;
      const std::uint64_t size = std::min(bytes - begin, piece_bytes);
      reinterpret_cast<std::uint64_t*>(sums)[block] = digest_of(memory + begin, size);
    }
  };
  return answer(host->launch(reinterpret_cast<StreamHandle>(stream), {{memory, bytes}}, kernel));
}

}  // extern "C"

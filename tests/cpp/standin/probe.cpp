// What benchmarks/gpu_probe asks for besides: questions about the device, and kernels, of which
// each does here with plain C++ what the PTX of that name does on a device.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <iterator>
#include <memory>
#include <string_view>
#include <vector>

#include "driver/host.h"
#include "standin/cuda_names.h"
#include "standin/probe.h"
#include "standin/state.h"

using namespace gpupool;
using standin::State;

namespace {

constexpr int multiprocessors = 16, copy_engines = 40, compute_mode = 20;
constexpr int compute_major = 75, compute_minor = 76;

CUresult answer(Status status) { return static_cast<CUresult>(static_cast<int>(status)); }

CUresult enter(const char* call) { return static_cast<CUresult>(State::get().enter(call, false)); }

template <typename T>
T taken(void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch() /
                                    std::chrono::nanoseconds(1));
}

void beat(const volatile std::uint32_t* memory, std::uint64_t count, std::uint64_t stride,
          std::uint64_t duration_ns, volatile std::uint64_t* out) {
  std::uint64_t beats = 0, longest = 0, shortest = 1000000000, late = 0, late_count = 0, at = 0;
  const std::uint64_t began = now_ns();
  std::uint64_t last = began;
  out[4] = began;
  while (last - began < duration_ns && memory[at] != 0xFFFFFFFF) {
    const std::uint64_t now = now_ns(), gap = now - last;
    last = now;
    ++beats;
    longest = std::max(longest, gap);
    if (gap != 0) shortest = std::min(shortest, gap);
    if (gap > 20000) {
      late += gap;
      ++late_count;
    }
    at = (at + stride) % count;
  }
  out[0] = beats;
  out[1] = longest;
  out[2] = late;
  out[3] = late_count;
  out[6] = shortest;
  out[5] = last;
}

void fill(std::uint32_t* memory, std::uint64_t count, std::uint32_t value) {
  for (std::uint64_t i = 0; i < count; ++i) memory[i] = value;
}

void count_others(const std::uint32_t* memory, std::uint64_t count, std::uint32_t value,
                  std::uint64_t* out) {
  for (std::uint64_t i = 0; i < count; ++i) *out += memory[i] != value ? 1 : 0;
}

}  // namespace

namespace gpupool::standin {

namespace {
char handles[5];  // whose addresses are the functions'
constexpr const char* names[] = {"work", "stream", "fill", "count", "beat"};
}  // namespace

void* probe_kernel(const char* name) {
  constexpr std::string_view prefix = "gpupool_probe_";
  std::string_view rest = name;
  if (!rest.starts_with(prefix)) return nullptr;
  rest.remove_prefix(prefix.size());
  for (std::size_t i = 0; i < std::size(names); ++i) {
    if (rest == names[i]) return &handles[i];
  }
  return nullptr;
}

bool is_probe_kernel(const void* function) {
  return function >= &handles[0] && function < &handles[0] + sizeof handles;
}

// `work` and `stream` only take time on a device, and here none.
Status launch_probe_kernel(const void* function, StreamHandle stream, void** parameters) {
  const std::string_view name = names[static_cast<const char*>(function) - &handles[0]];
  std::vector<host::DeviceRange> touched;
  std::function<void()> kernel = [] {};
  const auto memory = taken<std::uint64_t>(parameters[0]);
  if (name == "fill" || name == "count") {
    const auto count = taken<std::uint64_t>(parameters[1]);
    const auto value = taken<std::uint32_t>(parameters[2]);
    auto* const words = reinterpret_cast<std::uint32_t*>(memory);
    touched = {{memory, 4 * count}};
    if (name == "fill") {
      kernel = [=] { fill(words, count, value); };
    } else {
      auto* const out = reinterpret_cast<std::uint64_t*>(taken<std::uint64_t>(parameters[3]));
      kernel = [=] { count_others(words, count, value, out); };
    }
  } else if (name == "beat") {
    const auto count = taken<std::uint64_t>(parameters[1]);
    const auto stride = taken<std::uint64_t>(parameters[2]);
    const auto duration_ns = taken<std::uint64_t>(parameters[3]);
    auto* const out = reinterpret_cast<std::uint64_t*>(taken<std::uint64_t>(parameters[4]));
    // Its memory stays mapped for as long as it runs: what is mapped elsewhere need not wait for
    // it.
    kernel = [=] {
      beat(reinterpret_cast<const std::uint32_t*>(memory), count, stride, duration_ns, out);
    };
  }
  const auto host = std::dynamic_pointer_cast<host::HostDriver>(State::get().host());
  return host->launch(stream, std::move(touched), kernel);
}

}  // namespace gpupool::standin

extern "C" {

CUresult CUDAAPI cuDriverGetVersion(int* version) {
  if (const CUresult refused = enter("cuDriverGetVersion"); refused != 0) return refused;
  *version = 13000;
  return answer(Status::success);
}

CUresult CUDAAPI cuDeviceGetName(char* name, int bytes, CUdevice) {
  if (const CUresult refused = enter("cuDeviceGetName"); refused != 0) return refused;
  if (bytes < 1) return answer(Status::invalid_value);
  std::strncpy(name, "stand-in, not a GPU", static_cast<std::size_t>(bytes));
  name[bytes - 1] = '\0';
  return answer(Status::success);
}

CUresult CUDAAPI cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  if (const CUresult refused = enter("cuDeviceGetAttribute"); refused != 0) return refused;
  switch (static_cast<int>(attribute)) {
    case multiprocessors: *value = 1; break;
    case copy_engines:
    case compute_mode:
    case compute_major:
    case compute_minor: *value = 0; break;
    default: return answer(Status::invalid_value);
  }
  return answer(Status::success);
}

}  // extern "C"

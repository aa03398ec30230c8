// Copies in a batch, as cuda.h describes them, in the form of CUDA 13.0 and in that of 12.8.
#include <cstdint>
#include <iterator>

#include "standin/cuda_names.h"
#include "standin/state.h"

using namespace gpupool;
using standin::State;

namespace {

CUresult answer(Status status) { return static_cast<CUresult>(static_cast<int>(status)); }

// Where the addresses lie, as unified addressing tells it.
bool on_device(std::uint64_t address) {
  bool found = false;
  State::get().note([&](auto& books) {
    const auto behind = books.reservations.upper_bound(address);
    if (behind == books.reservations.begin()) return;
    const auto& [base, bytes] = *std::prev(behind);
    found = address - base < bytes;
  });
  return found;
}
bool all_on_device(const CUdeviceptr* addresses, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (!on_device(addresses[i])) return false;
  }
  return true;
}

// "Each memcpy operation in the batch must have a valid CUmemcpyAttributes corresponding to it."
bool valid(const CUmemcpyAttributes* attributes, const size_t* from, size_t attributes_count,
           size_t count) {
  if (attributes == nullptr || from == nullptr) return false;
  if (attributes_count == 0 || attributes_count > count || from[0] != 0) return false;
  for (size_t i = 0; i < attributes_count; ++i) {
    if (i > 0 && from[i] <= from[i - 1]) return false;
    const int order = static_cast<int>(attributes[i].srcAccessOrder);
    if (order < 1 || order > 3 || attributes[i].flags > 1) return false;
  }
  return from[attributes_count - 1] < count;
}

CUresult copy_batch(CUdeviceptr* destinations, CUdeviceptr* sources, size_t* sizes, size_t count,
                    CUmemcpyAttributes* attributes, size_t* attributes_from,
                    size_t attributes_count, CUstream stream) {
  if (const int refused = State::get().enter("cuMemcpyBatchAsync", true); refused != 0) {
    return static_cast<CUresult>(refused);
  }
  // Must not be the legacy default stream, by either of its handles.
  const bool legacy = reinterpret_cast<std::uintptr_t>(stream) <= 1;
  if (legacy || destinations == nullptr || sources == nullptr || sizes == nullptr ||
      !valid(attributes, attributes_from, attributes_count, count)) {
    return answer(Status::invalid_value);
  }
  const DriverPtr host = State::get().host();
  const auto on = reinterpret_cast<StreamHandle>(stream);
  static_assert(sizeof(CUdeviceptr) == sizeof(void*));
  // gpupool asks for no batch of both directions.
  if (all_on_device(destinations, count)) {
    return answer(host->copy_batch_to_device(reinterpret_cast<const DevicePtr*>(destinations),
                                             reinterpret_cast<const void* const*>(sources), sizes,
                                             count, on));
  }
  return answer(host->copy_batch_to_host(reinterpret_cast<void* const*>(destinations),
                                         reinterpret_cast<const DevicePtr*>(sources), sizes, count,
                                         on));
}

}  // namespace

extern "C" {

CUresult CUDAAPI cuMemcpyBatchAsync(CUdeviceptr* destinations, CUdeviceptr* sources, size_t* sizes,
                                    size_t count, CUmemcpyAttributes* attributes,
                                    size_t* attributes_from, size_t attributes_count,
                                    CUstream stream) {
  return copy_batch(destinations, sources, sizes, count, attributes, attributes_from,
                    attributes_count, stream);
}

CUresult CUDAAPI gpupool_standin_copy_batch_12080(CUdeviceptr* destinations, CUdeviceptr* sources,
                                                  size_t* sizes, size_t count,
                                                  CUmemcpyAttributes* attributes,
                                                  size_t* attributes_from, size_t attributes_count,
                                                  size_t* failed, CUstream stream) {
  const CUresult result = copy_batch(destinations, sources, sizes, count, attributes,
                                     attributes_from, attributes_count, stream);
  // No copy in particular.
  if (static_cast<int>(result) != 0) *failed = SIZE_MAX;
  return result;
}

}  // extern "C"

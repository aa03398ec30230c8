// What each driver call is about, from its arguments.
#pragma once

#include <numeric>

#include "driver/driver.h"

namespace gpupool {

// What a call is about, as far as a trace shows it.
struct Operands {
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
  StreamHandle stream = nullptr;
};

inline std::uint64_t address_of(const void* memory) {
  return reinterpret_cast<std::uintptr_t>(memory);
}

// operands_of_NAME(whether the outputs are written, arguments of the call...)
inline Operands operands_of_page_create(bool, PageHandle*, std::size_t bytes) { return {0, bytes}; }
inline Operands operands_of_address_reserve(bool made, DevicePtr* address, std::size_t bytes) {
  return {made ? *address : 0, bytes};
}
inline Operands operands_of_address_free(bool, DevicePtr address, std::size_t bytes) {
  return {address, bytes};
}
inline Operands operands_of_map(bool, DevicePtr address, std::size_t bytes, PageHandle) {
  return {address, bytes};
}
inline Operands operands_of_unmap(bool, DevicePtr address, std::size_t bytes) {
  return {address, bytes};
}
inline Operands operands_of_set_access(bool, DevicePtr address, std::size_t bytes) {
  return {address, bytes};
}
inline Operands operands_of_set_read_only(bool, DevicePtr address, std::size_t bytes) {
  return {address, bytes};
}
inline Operands operands_of_host_register(bool, void* memory, std::size_t bytes) {
  return {address_of(memory), bytes};
}
inline Operands operands_of_host_unregister(bool, void* memory) { return {address_of(memory)}; }
inline Operands operands_of_stream_destroy(bool, StreamHandle stream) { return {0, 0, stream}; }
inline Operands operands_of_stream_synchronize(bool, StreamHandle stream) { return {0, 0, stream}; }
inline Operands operands_of_stream_wait_event(bool, StreamHandle stream, EventHandle) {
  return {0, 0, stream};
}
inline Operands operands_of_copy_to_device(bool, DevicePtr address, const void*, std::size_t bytes,
                                           StreamHandle stream) {
  return {address, bytes, stream};
}
inline Operands operands_of_copy_to_host(bool, void*, DevicePtr address, std::size_t bytes,
                                         StreamHandle stream) {
  return {address, bytes, stream};
}
// The bytes of all its copies together; they have no one address.
inline Operands operands_of_batch(const std::size_t* sizes, std::size_t count,
                                  StreamHandle stream) {
  if (sizes == nullptr) return {0, 0, stream};
  return {0, std::accumulate(sizes, sizes + count, std::uint64_t{0}), stream};
}
inline Operands operands_of_copy_batch_to_device(bool, const DevicePtr*, const void* const*,
                                                 const std::size_t* sizes, std::size_t count,
                                                 StreamHandle stream) {
  return operands_of_batch(sizes, count, stream);
}
inline Operands operands_of_copy_batch_to_host(bool, void* const*, const DevicePtr*,
                                               const std::size_t* sizes, std::size_t count,
                                               StreamHandle stream) {
  return operands_of_batch(sizes, count, stream);
}
inline Operands operands_of_fill(bool, DevicePtr address, std::uint8_t, std::size_t bytes,
                                 StreamHandle stream) {
  return {address, bytes, stream};
}
inline Operands operands_of_digest(bool, DevicePtr address, std::size_t bytes, std::uint64_t*,
                                   StreamHandle stream) {
  return {address, bytes, stream};
}
// As of a batch.
inline Operands operands_of_digest_runs(bool, const DeviceRun* runs, std::size_t count,
                                        std::uint64_t*, StreamHandle stream) {
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; runs != nullptr && i < count; ++i) bytes += runs[i].bytes;
  return {0, bytes, stream};
}
inline Operands operands_of_copy_to_device_digest(bool, DevicePtr address, const void*,
                                                  std::size_t bytes, std::uint64_t*,
                                                  StreamHandle stream) {
  return {address, bytes, stream};
}
#define GPUPOOL_NOTHING(name)               \
  template <typename... A>                  \
  Operands operands_of_##name(bool, A...) { \
    return {};                              \
  }
GPUPOOL_NOTHING(page_granularity)
GPUPOOL_NOTHING(memory_info)
GPUPOOL_NOTHING(page_release)
GPUPOOL_NOTHING(page_export)
GPUPOOL_NOTHING(page_import)
GPUPOOL_NOTHING(context_synchronize)
GPUPOOL_NOTHING(stream_create)
GPUPOOL_NOTHING(event_create)
GPUPOOL_NOTHING(event_destroy)
GPUPOOL_NOTHING(event_record)
GPUPOOL_NOTHING(event_query)
GPUPOOL_NOTHING(event_synchronize)
#undef GPUPOOL_NOTHING

}  // namespace gpupool

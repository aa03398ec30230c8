// The CUDA driver over the stand-in library, with a look into the library.
#pragma once

#include <dlfcn.h>
#include <unistd.h>

#include <utility>

#include "bench.h"
#include "driver/cuda_abi.h"
#include "real_gpu.h"

namespace gpupool {

inline const standin::Control& control() {
  CHECK(stand_in() != nullptr);  // a real libcuda.so.1, or none
  return *stand_in();
}

// A call of the library itself, as other code in the process makes it.
template <typename Call>
Call library_call(const char* name) {
  void* function = nullptr;
  const auto find = reinterpret_cast<cuda::GetProcAddress>(
      dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuGetProcAddress_v2"));
  CHECK_EQ(find(name, &function, 12000, 0, nullptr), 0);
  return reinterpret_cast<Call>(function);
}

inline void* current_context() {
  void* context = nullptr;
  CHECK_EQ(library_call<int (*)(void**)>("cuCtxGetCurrent")(&context), 0);
  return context;
}
inline int make_current(void* context) {
  return library_call<int (*)(void*)>("cuCtxSetCurrent")(context);
}

// Every call of the seam once, each on what the earlier ones made, and undone at the end.
struct Answer {
  const char* call;
  Status status;
};
inline std::vector<Answer> call_everything(Driver& driver, bool with_the_context = true) {
  std::vector<Answer> answers;
  const auto note = [&](const char* call, Status status) {
    answers.push_back({call, status});
    return status == Status::success;
  };
#define SEAM(name, ...) note(#name, driver.name(__VA_ARGS__))
  std::size_t free_bytes = 0, total_bytes = 0;
  PageHandle page = 0, same = 0;
  int fd = -1;
  DevicePtr base = 0;
  StreamHandle stream = nullptr;
  EventHandle event = nullptr;
  alignas(4096) static std::byte memory[8192];
  // In the other half is a table, to which nobody copies.
  constexpr std::size_t half = sizeof memory / 2;
  SEAM(page_granularity, &free_bytes);
  SEAM(memory_info, &free_bytes, &total_bytes);
  if (with_the_context) SEAM(context_synchronize);
  const bool created = SEAM(page_create, &page, page_bytes);
  const bool exported = SEAM(page_export, &fd, page);
  const bool imported = SEAM(page_import, &same, fd);
  const bool reserved = SEAM(address_reserve, &base, page_bytes);
  const bool mapped = SEAM(map, base, page_bytes, page);
  const bool accessible = SEAM(set_access, base, page_bytes);
  const bool registered = SEAM(host_register, memory, sizeof memory);
  const bool stream_made = SEAM(stream_create, &stream);
  const bool event_made = SEAM(event_create, &event);
  SEAM(fill, base, 7, half, stream);
  SEAM(copy_to_host, memory, base, half, stream);
  SEAM(copy_to_device, base, memory, half, stream);
  const DevicePtr device[] = {base};
  void* const host[] = {memory};
  const std::size_t sizes[] = {half};
  SEAM(copy_batch_to_device, device, host, sizes, 1, stream);
  SEAM(copy_batch_to_host, host, device, sizes, 1, stream);
  auto* const sums = reinterpret_cast<std::uint64_t*>(memory);
  // A kernel that touches what is not there is a fault of the device, not of the call.
  if (accessible && registered) {
    SEAM(digest, base, half, sums, stream);
    auto* const runs = reinterpret_cast<DeviceRun*>(memory + half);
    runs[0] = {base, 64};
    SEAM(digest_runs, runs, 1, sums, stream);
    SEAM(copy_to_device_digest, base, memory + 64, 64, sums, stream);
  }
  SEAM(event_record, event, stream);
  SEAM(stream_wait_event, stream, event);
  SEAM(event_synchronize, event);
  SEAM(event_query, event);
  SEAM(stream_synchronize, stream);
  // What was made is given back, also when a call in between failed.
  if (event_made) SEAM(event_destroy, event);
  if (stream_made) SEAM(stream_destroy, stream);
  if (registered) SEAM(host_unregister, memory);
  if (mapped) SEAM(unmap, base, page_bytes);
  if (reserved) SEAM(address_free, base, page_bytes);
  if (imported) SEAM(page_release, same);
  if (created) SEAM(page_release, page);
  if (exported) close(fd);
#undef SEAM
  return answers;
}

}  // namespace gpupool

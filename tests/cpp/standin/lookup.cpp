// The two names that the stand-in library exports: how the driver is found in it, and the control
// for tests.
#include <cstdlib>
#include <cstring>

#include "standin/cuda_names.h"
#include "standin/state.h"

#define EXPORTED __attribute__((visibility("default")))

using gpupool::standin::Control;
using gpupool::standin::State;

namespace {

// Of CUDA 13.0, if the environment says nothing else.
int driver_version() {
  const char* value = std::getenv("GPUPOOL_STANDIN_VERSION");
  return value == nullptr ? 13000 : std::atoi(value);
}

struct Entry {
  const char* name;
  int version;
  void* function;
};

constexpr int found = 0, not_found = 1, version_not_sufficient = 2;

bool names(const char* variable, const char* symbol) {
  const char* value = std::getenv(variable);
  return value != nullptr && (std::strcmp(value, symbol) == 0 || std::strcmp(value, "all") == 0);
}

}  // namespace

extern "C" {

// As cuda.h says: what is not there is a success with a null pointer, and the status says why.
EXPORTED CUresult CUDAAPI cuGetProcAddress(const char* symbol, void** function, int cuda_version,
                                           cuuint64_t flags,
                                           CUdriverProcAddressQueryResult* status) {
#define ENTRY(name, version, params) {#name, version, reinterpret_cast<void*>(&::name)},
  // Of a call in several forms the newest comes last.
  static const Entry entries[] = {
      GPUPOOL_CUDA_SYMBOLS(ENTRY)  //
      {"cuDriverGetVersion", 2020, reinterpret_cast<void*>(&::cuDriverGetVersion)},
      {"cuDeviceGetName", 2000, reinterpret_cast<void*>(&::cuDeviceGetName)},
      {"cuDeviceGetAttribute", 2000, reinterpret_cast<void*>(&::cuDeviceGetAttribute)},
      {"cuDevicePrimaryCtxGetState", 7000, reinterpret_cast<void*>(&::cuDevicePrimaryCtxGetState)},
      {"cuMemcpyBatchAsync", 12080, reinterpret_cast<void*>(&::gpupool_standin_copy_batch_12080)},
      {"cuMemcpyBatchAsync", 13000, reinterpret_cast<void*>(&::cuMemcpyBatchAsync)},
  };
#undef ENTRY
  if (flags > 2 || cuda_version > driver_version()) return static_cast<CUresult>(1);
  if (names("GPUPOOL_STANDIN_LOOKUP", symbol)) return static_cast<CUresult>(801);
  int result = not_found;
  *function = nullptr;
  for (const Entry& entry : entries) {
    if (std::strcmp(entry.name, symbol) != 0) continue;
    if (names("GPUPOOL_STANDIN_WITHOUT", symbol)) continue;
    if (entry.version > driver_version()) continue;
    if (cuda_version >= entry.version) {
      *function = entry.function;
      result = found;
    } else if (result != found) {
      result = version_not_sufficient;
    }
  }
  if (status != nullptr) *status = static_cast<CUdriverProcAddressQueryResult>(result);
  return static_cast<CUresult>(0);
}

EXPORTED const Control* gpupool_standin_control() {
  static const Control control{
      .held = [] { return State::get().held(); },
      .contexts_made = [] { return State::get().contexts_made(); },
      .left_behind = [] { return State::get().left_behind(); },
      .calls = [](const char* name) { return State::get().calls(name); },
      .fail = [](const char* name, std::uint64_t nth, int code,
                 bool persistent) { State::get().fail(name, nth, code, persistent); },
      .injected = [] { return State::get().injected(); },
      .last_injected = [] { return State::get().last_injected(); },
      .forget = [] { State::get().forget(); },
      .make_context = [] { return State::get().make_context(); },
      .destroy_context = [](void* context) { State::get().destroy_context(context); },
      .begin_capture = [] { State::get().begin_capture(); },
      .end_capture = [] { return State::get().end_capture(); },
      .last_asked = [](const char* name) { return State::get().last_asked(name); },
  };
  return &control;
}

}  // extern "C"

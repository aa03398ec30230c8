// libcuda.so.1 by dlopen, its calls by cuGetProcAddress.
#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "driver/cuda_abi.h"

namespace gpupool::cuda {
namespace {

struct Library {
  Symbols symbols;
  std::string error;  // empty when every symbol was found
};

Library load() {
  Library library;
  // Never closed: the driver may have threads and exit handlers of its own.
  void* handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    const std::string reason = dlerror();
    if (reason.starts_with("libcuda.so.1: cannot open shared object file: No such file")) {
      library.error =
          "libcuda.so.1 was not found: install the NVIDIA driver, or use device 'host' to run "
          "without a GPU";
    } else {
      library.error = "libcuda.so.1 could not be loaded (" + reason + ")";
    }
    return library;
  }
  const auto find = reinterpret_cast<GetProcAddress>(dlsym(handle, "cuGetProcAddress_v2"));
  if (find == nullptr) {
    library.error = "the NVIDIA driver is too old: CUDA 12.0 or newer is needed";
    return library;
  }
  const auto look_up_later = [&](const char* name, int version) {
    void* function = nullptr;
    return find(name, &function, version, 0, nullptr) == 0 ? function : nullptr;
  };
  const auto look_up = [&](const char* name, int version) {
    void* function = look_up_later(name, version);
    if (function == nullptr && library.error.empty()) {
      library.error =
          std::string("the NVIDIA driver has no ") + name + ": CUDA 12.0 or newer is needed";
    }
    return function;
  };
#define GPUPOOL_CUDA_LOAD(name, version, params) \
  library.symbols.name = reinterpret_cast<decltype(library.symbols.name)>(look_up(#name, version));
  GPUPOOL_CUDA_SYMBOLS(GPUPOOL_CUDA_LOAD)
#undef GPUPOOL_CUDA_LOAD
#define GPUPOOL_CUDA_LOAD_LATER(field, name, version, params) \
  library.symbols.field =                                     \
      reinterpret_cast<decltype(library.symbols.field)>(look_up_later(#name, version));
  GPUPOOL_CUDA_LATER_SYMBOLS(GPUPOOL_CUDA_LOAD_LATER)
#undef GPUPOOL_CUDA_LOAD_LATER
  return library;
}

}  // namespace

const Symbols& symbols() {
  static const Library library = load();  // a failed load is remembered
  if (!library.error.empty()) throw std::runtime_error(library.error);
  return library.symbols;
}

}  // namespace gpupool::cuda

// Whether this process has the primary context of the GPU, by the driver's own word.
#pragma once

#include <dlfcn.h>

#include "check.h"
#include "devices.h"
#include "driver/cuda_abi.h"

namespace gpupool {

// Never on the host, which has none.
inline bool has_primary_context() {
  if (test_driver_name() != "cuda") return false;
  const auto look_up = reinterpret_cast<cuda::GetProcAddress>(
      dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuGetProcAddress_v2"));
  void *get = nullptr, *state = nullptr;
  CHECK_EQ(look_up("cuDeviceGet", &get, 2000, 0, nullptr), 0);
  CHECK_EQ(look_up("cuDevicePrimaryCtxGetState", &state, 7000, 0, nullptr), 0);
  CHECK(get != nullptr && state != nullptr);
  int device = 0, active = -1;
  unsigned flags = 0;
  CHECK_EQ(reinterpret_cast<int (*)(int*, int)>(get)(&device, 0), 0);
  CHECK_EQ(reinterpret_cast<int (*)(int, unsigned*, int*)>(state)(device, &flags, &active), 0);
  return active != 0;
}

}  // namespace gpupool

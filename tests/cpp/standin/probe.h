// The kernels of benchmarks/gpu_probe, as the stand-in has them.
#pragma once

#include "driver/driver.h"

namespace gpupool::standin {

void* probe_kernel(const char* name);  // null: none of its
bool is_probe_kernel(const void* function);
Status launch_probe_kernel(const void* function, StreamHandle stream, void** parameters);

}  // namespace gpupool::standin

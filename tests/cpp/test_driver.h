// The driver that a test runs on: GPUPOOL_TEST_DEVICE names it, host if it is not set.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "driver/driver.h"

namespace gpupool {

inline DriverPtr open_test_driver() {
  const char* set = std::getenv("GPUPOOL_TEST_DEVICE");
  const std::string device = set == nullptr ? "host" : set;
  if (device == "cuda") return open_cuda_driver(0);
  if (device == "host") return open_host_driver();
  throw std::runtime_error("GPUPOOL_TEST_DEVICE is " + device + ": use host or cuda");
}

}  // namespace gpupool

// Which driver a test program runs on: GPUPOOL_TEST_DRIVER is host/threads (the default),
// host/stepped or cuda; GPUPOOL_TEST_SEED moves the schedules of host/stepped.
#pragma once

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

#include "driver/host.h"

namespace gpupool {

inline std::string setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

inline std::string test_driver_name() { return setting("GPUPOOL_TEST_DRIVER", "host/threads"); }

// Each call gets a schedule of its own, the same in every run.
inline DriverPtr open_test_driver() {
  static std::uint64_t seed = std::stoull(setting("GPUPOOL_TEST_SEED", "1")) << 20;
  const std::string name = test_driver_name();
  if (name == "host/threads") return open_host_driver();
  if (name == "host/stepped") {
    return open_host_driver({.streams = StreamMode::stepped, .seed = seed++});
  }
  if (name == "cuda") return open_cuda_driver(0);
  throw std::invalid_argument("GPUPOOL_TEST_DRIVER is '" + name +
                              "': use host/threads, host/stepped or cuda");
}

inline DriverPtr open_stepped(std::uint64_t seed, std::size_t granularity_bytes) {
  return open_host_driver(
      {.streams = StreamMode::stepped, .seed = seed, .granularity_bytes = granularity_bytes});
}

// Null on a real device.
inline std::shared_ptr<host::HostDriver> host_device(const DriverPtr& driver) {
  return std::dynamic_pointer_cast<host::HostDriver>(driver);
}

}  // namespace gpupool

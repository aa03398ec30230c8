// Which driver a test program runs on: GPUPOOL_TEST_DRIVER is host/threads (the default),
// host/stepped or cuda; GPUPOOL_TEST_SEED moves the schedules of host/stepped. With
// GPUPOOL_TEST_OBSERVE=1 the driver is behind an observer that records a trace all the time; with
// GPUPOOL_TEST_WRITTEN=1 a program on cuda fails when it reads device memory that it never wrote.
#pragma once

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "driver/host.h"
#include "driver/observe.h"
#include "written.h"

namespace gpupool {

inline std::string setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

inline std::string test_driver_name() { return setting("GPUPOOL_TEST_DRIVER", "host/threads"); }

// Each call gets a schedule of its own, the same in every run.
inline DriverPtr open_bare_test_driver() {
  static std::uint64_t seed = std::stoull(setting("GPUPOOL_TEST_SEED", "1")) << 20;
  const std::string name = test_driver_name();
  if (name == "host/threads") return open_host_driver();
  if (name == "host/stepped") {
    return open_host_driver({.streams = StreamMode::stepped, .seed = seed++});
  }
  if (name == "cuda") {
    DriverPtr driver = open_cuda_driver(0);
    if (setting("GPUPOOL_TEST_WRITTEN", "0") != "1") return driver;
    return std::make_shared<WrittenDriver>(std::move(driver));
  }
  throw std::invalid_argument("GPUPOOL_TEST_DRIVER is '" + name +
                              "': use host/threads, host/stepped or cuda");
}

// The device beneath each observer that observed() made.
struct Beneath {
  std::mutex mutex;
  std::map<const Driver*, std::weak_ptr<host::HostDriver>> devices;
};
inline Beneath& beneath() {
  static Beneath all;
  return all;
}

inline std::shared_ptr<host::HostDriver> host_device(const DriverPtr& driver);

// Behind an observer that traces, if that is asked for.
inline DriverPtr observed(DriverPtr driver, WatchMode mode) {
  if (setting("GPUPOOL_TEST_OBSERVE", "0") != "1") return driver;
  const auto observer = std::make_shared<Observer>();
  const auto device = host_device(driver);
  DriverPtr wrapped = with_observer(std::move(driver), observer, mode);
  observer->start(std::make_shared<Trace>());
  std::lock_guard lock(beneath().mutex);
  beneath().devices[wrapped.get()] = device;
  return wrapped;
}

inline WatchMode test_watch_mode() {
  return test_driver_name() == "host/stepped" ? WatchMode::calls : WatchMode::thread;
}

inline DriverPtr open_test_driver() { return observed(open_bare_test_driver(), test_watch_mode()); }

inline DriverPtr open_stepped(std::uint64_t seed, std::size_t granularity_bytes) {
  return open_host_driver(
      {.streams = StreamMode::stepped, .seed = seed, .granularity_bytes = granularity_bytes});
}

// Null on a real device.
inline std::shared_ptr<host::HostDriver> host_device(const DriverPtr& driver) {
  if (observer_of(*driver)) {
    std::lock_guard lock(beneath().mutex);
    return beneath().devices.at(driver.get()).lock();
  }
  return std::dynamic_pointer_cast<host::HostDriver>(driver);
}

}  // namespace gpupool

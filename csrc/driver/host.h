// What the host driver can do beyond the seam, for tests: kernels, and work that does not end.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "driver/driver.h"

namespace gpupool::host {

// While it lives, what was enqueued behind it on its stream does not run.
class Hold {
 public:
  explicit Hold(std::function<void()> release) : release_(std::move(release)) {}
  ~Hold() { release_(); }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;

 private:
  std::function<void()> release_;
};

struct DeviceRange {
  DevicePtr address;
  std::size_t bytes;
};

class HostDriver : public Driver {
 public:
  // Runs `kernel` on the stream, which may touch these ranges and nothing else of the device. One
  // that is not accessible when it runs is a sticky fault. The kernel must not call the driver.
  [[nodiscard]] virtual Status launch(StreamHandle stream, std::vector<DeviceRange> touched,
                                      std::function<void()> kernel) noexcept = 0;
  [[nodiscard]] virtual Status hold(StreamHandle stream, std::unique_ptr<Hold>* hold) noexcept = 0;
  // What is enqueued on all streams and not done.
  [[nodiscard]] virtual std::size_t pending() const = 0;
  // Puts the clock forward.
  virtual void advance_ns(std::int64_t ns) noexcept = 0;
  // Stepped streams: the last wait that nothing could satisfy, in words. Such a wait answers
  // launch_timeout and changes nothing.
  [[nodiscard]] virtual std::string deadlock() const = 0;
};

std::shared_ptr<HostDriver> open_host_device(const HostOptions& options);

}  // namespace gpupool::host

// A region's bytes on the host: pinned memory, and which runs of it are worth keeping.
#pragma once

#include <cstddef>
#include <map>
#include <vector>

#include "driver/driver.h"

namespace gpupool {

// Host memory backed by a memfd and registered with the driver, so that it can be shared with
// another process and copied asynchronously.
class HostMemory {
 public:
  // Maps `fd`, which stays the caller's and must be a file of at least `bytes`; a negative `fd`
  // makes a new memfd. Throws std::system_error, DriverError or UsageError.
  HostMemory(DriverPtr driver, int fd, std::size_t bytes);
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

 private:
  // Takes back the registrations of [0, end) and the mapping.
  void release(std::size_t end) noexcept;
  DriverPtr driver_;
  std::byte* data_ = nullptr;
  std::size_t bytes_;
};

// A run of bytes, [begin, end).
struct Run {
  std::size_t begin;
  std::size_t end;
  [[nodiscard]] std::size_t bytes() const noexcept { return end - begin; }
  bool operator==(const Run&) const = default;
};

// A set of bytes as disjoint, non-adjacent runs in order.
class RunSet {
 public:
  void add(Run run);
  void add(const RunSet& other);
  void remove(Run run);
  void clear() { runs_.clear(); }
  [[nodiscard]] std::vector<Run> runs() const;
  // What of [0, bytes) is not in the set.
  [[nodiscard]] std::vector<Run> gaps(std::size_t bytes) const;
  [[nodiscard]] std::size_t bytes() const;
  [[nodiscard]] bool empty() const { return runs_.empty(); }

 private:
  std::map<std::size_t, std::size_t> runs_;  // begin -> end
};

}  // namespace gpupool

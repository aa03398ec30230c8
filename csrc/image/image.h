// A region's bytes on the host: pinned memory, and which runs of it are worth keeping.
#pragma once

#include <atomic>
#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "driver/driver.h"

namespace gpupool {

// A run of bytes, [begin, end).
struct Run {
  std::size_t begin;
  std::size_t end;
  [[nodiscard]] std::size_t bytes() const noexcept { return end - begin; }
  bool operator==(const Run&) const = default;
};

// Of runs in order, those that share a byte with `part`, cut to it.
[[nodiscard]] std::vector<Run> within(Run part, const std::vector<Run>& runs);

// Part of a file; the descriptor stays the caller's.
struct Extent {
  int fd;
  std::size_t offset;  // in whole pages of the system
  std::size_t bytes;
};

// Host memory backed by memfds and registered with the driver, so that it can be shared with
// another process and copied asynchronously. It can grow at the addresses it has.
class HostMemory {
 public:
  // Maps `fd`, which stays the caller's and must be a file of at least `bytes` rounded up to the
  // system's pages; a negative `fd` makes a new memfd. Addresses are kept for `capacity_bytes`,
  // or for `bytes` if that is more. Throws std::system_error, DriverError or UsageError.
  HostMemory(DriverPtr driver, int fd, std::size_t bytes, std::size_t capacity_bytes = 0);
  // Puts these together, one behind the other; all but the last are whole pages of the system. What
  // is in them stays. Throws as the other does.
  HostMemory(DriverPtr driver, std::span<const Extent> extents, std::size_t capacity_bytes);
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  // Makes it `bytes` long, the new part backed by `fd`, or a new memfd, from its start. Throws as
  // the constructor does and is as before then.
  void grow(int fd, std::size_t bytes);
  // How many bytes a descriptor must have to grow to `bytes`; 0 if it is as long already. Throws
  // std::system_error for a size that no system has.
  [[nodiscard]] std::size_t missing_bytes(std::size_t bytes) const;
  // Keeps everything pinned and mapped for good, for its owner goes and a copy in flight may touch
  // it. Nothing is to be done with it any more.
  void abandon() noexcept;
  // Ends it before its time: unregisters and unmaps. False if the driver did not let it go: it
  // stays mapped then, lost, also when this is destroyed. Nothing else may be asked of it any more.
  bool let_go() noexcept;
  // As this ends, `gone_bytes` grows by bytes(), unless the driver does not let it go.
  void report_to(std::shared_ptr<std::atomic<std::size_t>> gone_bytes) noexcept;
  // What one copy cannot span: `run` cut where one registration ends and the next begins.
  [[nodiscard]] std::vector<Run> cut(Run run) const;

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  // In whole pages of the system.
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

 private:
  void add(const Extent& extent, bool is_fresh);
  void take_back(std::size_t first) noexcept;
  DriverPtr driver_;
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  std::size_t capacity_bytes_;
  std::vector<Run> pieces_;  // registered, one after the other
  bool stuck_ = false;       // the driver did not let one of them go
  std::shared_ptr<std::atomic<std::size_t>> gone_bytes_;
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

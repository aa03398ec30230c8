// Digests of many runs of device memory at a time, made behind whatever else a stream does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "image/image.h"

namespace gpupool {

// For use by one thread at a time.
class RunDigests {
 public:
  explicit RunDigests(DriverPtr driver) : driver_(std::move(driver)) {}
  // What was not taken may be in flight: waits for the device, or leaves the memory pinned for
  // good.
  ~RunDigests();
  RunDigests(const RunDigests&) = delete;
  RunDigests& operator=(const RunDigests&) = delete;

  // Puts the digests of the runs behind what is on the stream; what to take them by. Throws
  // UsageError for no runs, DriverError or std::system_error; nothing is in flight of them then.
  std::uint64_t enqueue(std::span<const DeviceRun> runs, StreamHandle stream);
  // What the runs digest to, once their stream is known to be past that point; those enqueued
  // before must be too, and are forgotten. Throws UsageError for what was taken already.
  std::vector<std::uint64_t> take(std::uint64_t number);

 private:
  using Memory = std::unique_ptr<HostMemory>;
  struct Batch {
    Memory memory;  // the sums, then the runs
    std::size_t count;
  };
  Memory memory_of(std::size_t bytes);

  DriverPtr driver_;
  std::map<std::uint64_t, Batch> batches_;
  std::vector<Memory> idle_;
  std::uint64_t last_ = 0;
};

}  // namespace gpupool

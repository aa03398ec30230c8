// Slabs of pinned host memory that somebody else grants, as a pool daemon does.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "image/image.h"
#include "memory/slab.h"

namespace gpupool {

// Every slab that was supplied is in use.
class NoSlabSupplied final : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Makes no memory: hands out what supply() brought, and keeps what comes back until it is dropped.
// Any thread may call.
class SuppliedSlabs final : public SlabSource {
 public:
  SuppliedSlabs(DriverPtr driver, std::size_t slab_bytes);
  // Waits for the device if there are slabs in use. What it cannot wait for stays pinned.
  ~SuppliedSlabs() override;
  SuppliedSlabs(const SuppliedSlabs&) = delete;
  SuppliedSlabs& operator=(const SuppliedSlabs&) = delete;

  // One more slab, over `fd`, which stays the caller's. Throws what HostMemory does, or
  // std::bad_alloc; nothing has changed then.
  void supply(int fd);
  // Lets go of what is not in use and says how many slabs that was: no longer registered nor
  // mapped, so that who granted them may count them as his again. What the driver does not let go
  // is lost() instead, and never handed out again.
  std::size_t drop_idle() noexcept;

  DevicePtr acquire() override;          // throws NoSlabSupplied or std::bad_alloc
  void release(DevicePtr run) override;  // throws UsageError if it is none
  [[nodiscard]] bool ended() noexcept override;
  void abandon(DevicePtr run) noexcept override;  // the slab is lost()
  [[nodiscard]] std::size_t slab_bytes() const noexcept override { return slab_bytes_; }
  [[nodiscard]] std::size_t in_use() const;
  [[nodiscard]] std::size_t idle() const;
  [[nodiscard]] std::size_t lost() const;

 private:
  using Runs = std::map<DevicePtr, std::unique_ptr<HostMemory>>;
  const DriverPtr driver_;
  const std::size_t slab_bytes_;
  mutable std::mutex mutex_;
  Runs in_use_;
  Runs idle_;
  std::size_t lost_ = 0;
};

}  // namespace gpupool

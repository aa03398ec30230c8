// Slabs of pinned host memory.
#pragma once

#include <map>
#include <memory>

#include "image/image.h"
#include "memory/slab.h"

namespace gpupool {

// Each slab is a HostMemory of its own.
class HostSlabs final : public SlabSource {
 public:
  HostSlabs(DriverPtr driver, std::size_t slab_bytes);
  // Waits for the device if there are slabs in use. What it cannot wait for stays pinned.
  ~HostSlabs() override;
  HostSlabs(const HostSlabs&) = delete;
  HostSlabs& operator=(const HostSlabs&) = delete;

  DevicePtr acquire() override;          // throws what HostMemory does, or std::bad_alloc
  void release(DevicePtr run) override;  // throws UsageError if it is none
  [[nodiscard]] bool ended() noexcept override;
  void abandon(DevicePtr run) noexcept override;
  [[nodiscard]] std::size_t slab_bytes() const noexcept override { return slab_bytes_; }

 private:
  DriverPtr driver_;
  std::size_t slab_bytes_;
  std::map<DevicePtr, std::unique_ptr<HostMemory>> runs_;
};

}  // namespace gpupool

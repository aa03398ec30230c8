#include "image/host_slabs.h"

#include <string>
#include <utility>

namespace gpupool {

HostSlabs::HostSlabs(DriverPtr driver, std::size_t slab_bytes)
    : driver_(std::move(driver)), slab_bytes_(slab_bytes) {}

DevicePtr HostSlabs::acquire() {
  auto memory = std::make_unique<HostMemory>(driver_, -1, slab_bytes_);
  const auto address = reinterpret_cast<DevicePtr>(memory->data());
  runs_.emplace(address, std::move(memory));
  return address;
}

void HostSlabs::release(DevicePtr run) {
  if (runs_.erase(run) == 0) throw UsageError("no slab begins at " + std::to_string(run));
}

}  // namespace gpupool

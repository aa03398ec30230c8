#include "image/host_slabs.h"

#include <string>
#include <utility>

#include "transfer/transfer.h"

namespace gpupool {

HostSlabs::HostSlabs(DriverPtr driver, std::size_t slab_bytes)
    : driver_(std::move(driver)), slab_bytes_(slab_bytes) {}

HostSlabs::~HostSlabs() {
  if (runs_.empty() || device_ended(*driver_)) return;
  for (const auto& [address, memory] : runs_) memory->abandon();
}

DevicePtr HostSlabs::acquire() {
  auto memory = std::make_unique<HostMemory>(driver_, -1, slab_bytes_);
  const auto address = reinterpret_cast<DevicePtr>(memory->data());
  runs_.emplace(address, std::move(memory));
  return address;
}

void HostSlabs::release(DevicePtr run) {
  if (runs_.erase(run) == 0) throw UsageError("no slab begins at " + std::to_string(run));
}

bool HostSlabs::ended() noexcept { return device_ended(*driver_); }

void HostSlabs::abandon(DevicePtr run) noexcept {
  const auto at = runs_.find(run);
  if (at == runs_.end()) return;
  at->second->abandon();
  runs_.erase(at);
}

}  // namespace gpupool

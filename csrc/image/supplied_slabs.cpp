#include "image/supplied_slabs.h"

#include <string>
#include <utility>

#include "transfer/transfer.h"

namespace gpupool {

SuppliedSlabs::SuppliedSlabs(DriverPtr driver, std::size_t slab_bytes)
    : driver_(std::move(driver)), slab_bytes_(slab_bytes) {}

SuppliedSlabs::~SuppliedSlabs() {
  if (in_use_.empty() || device_ended(*driver_)) return;
  for (const auto& [address, memory] : in_use_) memory->abandon();
}

void SuppliedSlabs::supply(int fd) {
  // HostMemory would make memory of its own for it.
  if (fd < 0) throw UsageError("a slab is supplied as an open descriptor");
  auto memory = std::make_unique<HostMemory>(driver_, fd, slab_bytes_);
  const auto address = reinterpret_cast<DevicePtr>(memory->data());
  const std::lock_guard lock(mutex_);
  idle_.emplace(address, std::move(memory));
}

std::size_t SuppliedSlabs::drop_idle() noexcept {
  Runs dropped;
  {
    const std::lock_guard lock(mutex_);
    dropped.swap(idle_);
  }
  std::size_t gone = 0;
  for (auto& [address, memory] : dropped) gone += memory->let_go() ? 1 : 0;
  const std::lock_guard lock(mutex_);
  lost_ += dropped.size() - gone;
  return gone;
}

DevicePtr SuppliedSlabs::acquire() {
  const std::lock_guard lock(mutex_);
  if (idle_.empty()) {
    throw NoSlabSupplied("all " + std::to_string(in_use_.size()) + " slabs supplied are in use");
  }
  return in_use_.insert(idle_.extract(idle_.begin())).position->first;
}

void SuppliedSlabs::release(DevicePtr run) {
  const std::lock_guard lock(mutex_);
  const auto at = in_use_.find(run);
  if (at == in_use_.end()) throw UsageError("no slab begins at " + std::to_string(run));
  idle_.insert(in_use_.extract(at));
}

bool SuppliedSlabs::ended() noexcept { return device_ended(*driver_); }

void SuppliedSlabs::abandon(DevicePtr run) noexcept {
  const std::lock_guard lock(mutex_);
  const auto at = in_use_.find(run);
  if (at == in_use_.end()) return;
  at->second->abandon();
  in_use_.erase(at);
  ++lost_;
}

std::size_t SuppliedSlabs::in_use() const {
  const std::lock_guard lock(mutex_);
  return in_use_.size();
}

std::size_t SuppliedSlabs::idle() const {
  const std::lock_guard lock(mutex_);
  return idle_.size();
}

std::size_t SuppliedSlabs::lost() const {
  const std::lock_guard lock(mutex_);
  return lost_;
}

}  // namespace gpupool

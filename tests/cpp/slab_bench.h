// A source of slabs in ordinary memory that counts what it gave and fails when told to, and
// allocations of the C++ library that fail when told to.
#pragma once

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>

#include "bench.h"
#include "memory/slab.h"

namespace gpupool {

struct SourceFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class HeapSlabs final : public SlabSource {
 public:
  explicit HeapSlabs(std::size_t bytes) : bytes_(bytes) {}

  DevicePtr acquire() override {
    const std::lock_guard lock(mutex_);
    if (runs_.size() >= runs_max) throw SourceFault("there is no more memory");
    fault();
    auto memory = std::make_unique<std::uint64_t[]>(bytes_ / 8);
    const auto address = reinterpret_cast<DevicePtr>(memory.get());
    runs_.emplace(address, std::move(memory));
    return address;
  }
  void release(DevicePtr run) override {
    const std::lock_guard lock(mutex_);
    fault();
    if (runs_.erase(run) == 0) std::abort();
  }
  std::size_t slab_bytes() const noexcept override { return bytes_; }

  std::size_t runs() const {
    const std::lock_guard lock(mutex_);
    return runs_.size();
  }

  std::size_t runs_max = ~std::size_t{0};
  std::uint64_t fail_at = 0;  // this call from now (1 is the next), with `persistent` all after it
  bool persistent = false;
  std::uint64_t failed = 0;

 private:
  void fault() {
    if (fail_at == 0 || --fail_at > 0) return;
    if (persistent) fail_at = 1;
    ++failed;
    throw SourceFault("told to fail");
  }
  std::size_t bytes_;
  mutable std::mutex mutex_;
  std::map<DevicePtr, std::unique_ptr<std::uint64_t[]>> runs_;
};

// The n-th allocation from now, of this thread, throws std::bad_alloc; 0 for none.
inline constinit thread_local std::uint64_t bad_alloc_at = 0;
inline constinit thread_local std::uint64_t bad_allocs = 0;

// The content of a block: a function of its handle alone, in every word.
inline void stamp(DevicePtr address, std::size_t bytes, BlockHandle handle) {
  auto* words = reinterpret_cast<std::uint64_t*>(address);
  for (std::size_t i = 0; i < bytes / 8; ++i) words[i] = static_cast<std::uint64_t>(handle) + i;
}
inline bool stamped(DevicePtr address, std::size_t bytes, BlockHandle handle) {
  const auto* words = reinterpret_cast<const std::uint64_t*>(address);
  for (std::size_t i = 0; i < bytes / 8; ++i) {
    if (words[i] != static_cast<std::uint64_t>(handle) + i) return false;
  }
  return true;
}

}  // namespace gpupool

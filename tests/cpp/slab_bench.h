// A source of slabs in ordinary memory that counts what it gave and fails when told to, allocations
// of the C++ library that fail when told to, and a plain model of the allocator.
#pragma once

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>

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
  bool ended() noexcept override {
    ++waits;
    return ends;
  }
  void abandon(DevicePtr run) noexcept override {
    const std::lock_guard lock(mutex_);
    const auto at = runs_.find(run);
    if (at == runs_.end()) std::abort();
    abandoned.push_back(std::move(at->second));
    runs_.erase(at);
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
  bool ends = true;  // what may touch a block
  int waits = 0;
  std::vector<std::unique_ptr<std::uint64_t[]>> abandoned;

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

template <typename Work>
void in_another_thread(Work work) {
  std::exception_ptr failure;
  std::thread([&] {
    try {
      work();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
}

inline bool frees(SlabAllocator& slabs, BlockHandle handle) {
  try {
    slabs.free(handle);
    return true;
  } catch (const StaleBlock&) {
    return false;
  }
}

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

inline constexpr std::size_t slab_bytes = 16384;

struct Scene {
  explicit Scene(SlabLimits limits = {{64, 192, 4096}, 12})
      : source(std::make_shared<HeapSlabs>(slab_bytes)),
        slabs(SlabAllocator::create(source, std::move(limits))) {}
  std::shared_ptr<HeapSlabs> source;
  std::shared_ptr<SlabAllocator> slabs;
};

struct Live {
  BlockHandle handle;
  std::size_t shape;
};

// The allocator beside a list of what is in use and what was.
struct Model {
  Model(SlabAllocator& allocator, std::uint64_t seed) : slabs(allocator), random(seed) {}

  std::size_t below(std::size_t n) { return static_cast<std::size_t>(random() % n); }
  bool allocate(std::size_t shape) {
    BlockHandle handle{};
    try {
      handle = slabs.allocate(shape);
    } catch (const OutOfBlocks&) {
      return false;
    }
    CHECK((name_of(handle).generation & 1) == 1);
    stamp(slabs.address_of(handle), slabs.block_bytes(shape), handle);
    live.push_back({handle, shape});
    return true;
  }
  void free(std::size_t i) {
    const Live block = live[i];
    CHECK(stamped(slabs.address_of(block.handle), slabs.block_bytes(block.shape), block.handle));
    slabs.free(block.handle);
    if (dead.size() < 5000) {
      dead.push_back(block.handle);
    } else {
      dead[below(dead.size())] = block.handle;
    }
    live[i] = live.back();
    live.pop_back();
  }
  void check_statistics() {
    const SlabStatistics all = slabs.statistics();
    std::vector<std::size_t> counts(all.shapes.size());
    std::size_t bytes = 0;
    for (const Live& block : live) {
      ++counts[block.shape];
      bytes += slabs.block_bytes(block.shape);
    }
    for (std::size_t shape = 0; shape < counts.size(); ++shape) {
      CHECK_EQ(all.shapes[shape].blocks_live, counts[shape]);
    }
    CHECK_EQ(all.bytes_live, bytes);
    CHECK_EQ(all.slabs, all.slabs_made - all.slabs_returned);
  }

  SlabAllocator& slabs;
  std::mt19937_64 random;
  std::vector<Live> live;
  std::vector<BlockHandle> dead;
};

}  // namespace gpupool

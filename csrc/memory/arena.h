// Blocks of any size out of one range of addresses, such as a region's, for allocators of other
// libraries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "driver/driver.h"

namespace gpupool {

struct ArenaStatistics {
  std::size_t limit_bytes = 0;
  std::size_t live_blocks = 0;
  std::size_t live_bytes = 0;  // in whole units of the alignment
  std::size_t peak_bytes = 0;  // the most that was ever live
  std::size_t free_blocks = 0;
  std::size_t largest_free_bytes = 0;
  std::uint64_t refused = 0;  // allocations for which there was no room
};

// Best fit; free neighbours are one block at once. All that is known is kept beside the memory,
// which may be a device's and is never touched. Thread safe; every call is O(log n).
class Arena {
 public:
  // The addresses [base, base + limit_bytes). Throws UsageError unless the alignment is a power of
  // two that `base` is a multiple of.
  Arena(DevicePtr base, std::size_t limit_bytes, std::size_t alignment = 512);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Nothing if there is no room. A block of 2 MiB or more begins at a multiple of that where one
  // end of the block it is cut from allows. Throws UsageError for 0 bytes, or std::bad_alloc.
  std::optional<DevicePtr> allocate(std::size_t bytes);
  // Needs no memory. Throws UsageError, and changes nothing, if no block in use begins there.
  void free(DevicePtr address);
  // Grows or shrinks the range at its end. Throws UsageError if a block in use would be cut off,
  // or std::bad_alloc, but not after prepare_limit().
  void set_limit(std::size_t limit_bytes);
  // Gets the memory that the next set_limit() may need. Throws std::bad_alloc.
  void prepare_limit();

  [[nodiscard]] ArenaStatistics statistics() const;
  [[nodiscard]] std::size_t live_blocks() const;

 private:
  using Sizes = std::set<std::pair<std::size_t, DevicePtr>>;  // of the free blocks
  struct Block {
    std::size_t bytes = 0;
    Sizes::node_type size;  // while it is in use: what its place among the free ones will take
  };
  using Blocks = std::map<DevicePtr, Block>;  // without gaps
  static bool is_free(const Block& block) noexcept { return block.size.empty(); }
  static Sizes::node_type new_size();
  static Blocks::node_type new_block();
  void set_free(Blocks::iterator block) noexcept;
  void set_used(Blocks::iterator block) noexcept;
  Blocks::iterator insert(Blocks::node_type node, DevicePtr address, std::size_t bytes) noexcept;
  [[nodiscard]] DevicePtr end() const noexcept { return base_ + usable_; }

  const DevicePtr base_;
  const std::size_t alignment_;
  mutable std::mutex mutex_;
  std::size_t limit_ = 0;
  std::size_t usable_ = 0;  // of the limit, in whole units of the alignment
  Blocks blocks_;
  Sizes sizes_;
  Blocks::node_type spare_;  // for the block that a longer range may end with
  std::size_t live_blocks_ = 0;
  std::size_t live_bytes_ = 0;
  std::size_t peak_bytes_ = 0;
  std::uint64_t refused_ = 0;
};

}  // namespace gpupool

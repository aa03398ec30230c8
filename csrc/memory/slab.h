// Blocks of fixed sizes, carved from slabs: runs of memory cut into equal blocks of one shape.
//
// The memory may be a device's, so nothing is ever read from or written to it: what there is to
// know about a block is kept beside it. A block is named by a handle with a generation, so that a
// handle used after its block was freed is found out, by whichever thread, and changes nothing.
//
// A slab belongs to the thread that had it made. That thread alone allocates from it and frees to
// it, with plain loads and stores: not one atomic read-modify-write, no lock. When another thread
// frees one of its blocks the slab is taken from its owner, who need not take part (membarrier(2)
// is the fence on his side), and is used under the allocator's lock from then on, until one thread
// alone has used it for a while. See "Slabs" in docs/design.md.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <vector>

#include "driver/driver.h"

namespace gpupool {

// Where slabs come from and go back to. Called by one thread at a time.
class SlabSource {
 public:
  virtual ~SlabSource() = default;
  // The address of a fresh run of slab_bytes(). Throws, and has changed nothing, if there is none.
  virtual DevicePtr acquire() = 0;
  // Takes back what acquire() gave, which nothing in flight touches. Throws if it cannot; the run
  // is then as it was.
  virtual void release(DevicePtr run) = 0;
  // For who ends with blocks in use: waits for what is in flight. Whether all of it has ended.
  [[nodiscard]] virtual bool ended() noexcept = 0;
  // Instead of release(): keeps the run as it is for good, for something in flight may touch it.
  virtual void abandon(DevicePtr run) noexcept = 0;
  [[nodiscard]] virtual std::size_t slab_bytes() const noexcept = 0;
};

// Names one use of one block. 0 names none.
enum class BlockHandle : std::uint64_t {};

struct BlockName {
  std::uint32_t slab;
  std::uint32_t block;
  std::uint32_t generation;  // odd while its block is in use, one more once it is freed
};
constexpr BlockName name_of(BlockHandle handle) {
  const auto bits = static_cast<std::uint64_t>(handle);
  return {static_cast<std::uint32_t>(bits >> 48), static_cast<std::uint32_t>(bits >> 32 & 0xFFFF),
          static_cast<std::uint32_t>(bits)};
}
constexpr BlockHandle handle_of(BlockName name) {
  return BlockHandle{std::uint64_t{name.slab} << 48 | std::uint64_t{name.block} << 32 |
                     name.generation};
}

// A handle whose block is not in use under it: freed already, handed out again since, or never.
class StaleBlock final : public UsageError {
 public:
  StaleBlock(BlockName name, const char* what);
  [[nodiscard]] BlockName name() const noexcept { return name_; }

 private:
  BlockName name_;
};

// Every block is in use and the limit on slabs is reached. (If the source has no more memory, it
// is the source's error that comes out.)
class OutOfBlocks final : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct SlabLimits {
  std::vector<std::size_t> block_bytes;       // one shape each, named by its index from here on
  std::size_t slabs_max;                      // in all; times the number of shapes at most 65536
  std::uint32_t block_uses_max = 0x7FFFFFFF;  // a block is never handed out more often than this
  bool thread_owned = true;                   // false: every call takes the lock
};

struct ShapeStatistics {
  std::size_t block_bytes = 0;
  std::size_t slabs = 0;
  std::size_t blocks = 0;  // in these slabs, in use or not
  std::size_t blocks_live = 0;
};
struct SlabStatistics {
  std::vector<ShapeStatistics> shapes;
  std::size_t slabs = 0;
  std::size_t bytes_held = 0;  // of all slabs
  std::size_t bytes_live = 0;  // of all blocks in use
  double fragmentation = 0;    // share of the bytes held that no block in use covers
  std::uint64_t slabs_made = 0;
  std::uint64_t slabs_returned = 0;
  std::uint64_t slabs_taken = 0;      // from the thread that owned them
  std::uint64_t return_failures = 0;  // of the source; trim() tries again
};

// Any thread may call; blocks may be freed by another thread than had them allocated. A free says
// that nothing in flight touches the block any more. Not for use in a signal handler, nor in a
// child forked while another thread was calling.
class SlabAllocator : public std::enable_shared_from_this<SlabAllocator> {
 public:
  // Throws UsageError unless there are 1 to 64 shapes, and a slab holds 1 to 65536 blocks of each.
  static std::shared_ptr<SlabAllocator> create(std::shared_ptr<SlabSource> source,
                                               SlabLimits limits);
  // Gives every slab back, with what is still in use once nothing in flight can touch it. Where
  // that cannot be waited for, the source keeps the slab as it is.
  ~SlabAllocator();
  SlabAllocator(const SlabAllocator&) = delete;
  SlabAllocator& operator=(const SlabAllocator&) = delete;

  // O(1), but for the making of a slab. Throws UsageError if there is no such shape, OutOfBlocks,
  // std::bad_alloc or what the source throws; nothing is lost then.
  [[nodiscard]] BlockHandle allocate(std::size_t shape);
  // O(1), but for the return of an empty slab. Throws StaleBlock.
  void free(BlockHandle handle);
  // Throws StaleBlock.
  [[nodiscard]] DevicePtr address_of(BlockHandle handle) const;

  // The same for many, all or none. allocate_many() fills `handles`; after a failure they are
  // whatever. free_many() also refuses a handle named twice; nothing has changed then, unless
  // another thread was freeing one of them at the same time.
  void allocate_many(std::size_t shape, std::span<BlockHandle> handles);
  void free_many(std::span<const BlockHandle> handles);
  // Throws StaleBlock, or UsageError unless there is room for exactly as many.
  void addresses_of(std::span<const BlockHandle> handles, std::span<DevicePtr> addresses) const;

  // Gives back every slab that has no block in use. (Otherwise one empty slab of each shape may
  // stay with each thread, and one more with nobody.) Throws what the source throws.
  void trim();
  // Exact while no other thread is calling.
  [[nodiscard]] SlabStatistics statistics() const;
  // The smallest shape whose blocks hold `bytes`. Throws UsageError if none does.
  [[nodiscard]] std::size_t shape_for(std::size_t bytes) const;
  [[nodiscard]] std::size_t block_bytes(std::size_t shape) const;

 private:
  struct Thread;
  struct Slab;
  struct List;
  struct Mine;
  class Working;
  struct Memberships;

  static constexpr std::size_t shapes_max = 64;

  SlabAllocator(std::shared_ptr<SlabSource> source, SlabLimits limits);

  Thread* find() const noexcept;
  Thread* join();
  void leave(Thread& thread) noexcept;

  static std::uint32_t blocks_live(const Slab& slab) noexcept;
  static bool live(const Slab& slab, BlockName name) noexcept;
  static bool live_in_made(const Slab& slab, BlockName name) noexcept;
  static BlockHandle take(Slab& slab, std::uint32_t free) noexcept;
  static void put(Slab& slab, BlockName name, std::uint32_t free) noexcept;
  void put_or_retire(Slab& slab, BlockName name) const noexcept;
  Slab& named(BlockName name) const;
  [[noreturn]] void refuse(BlockName name) const;

  BlockHandle allocate_slowly(std::size_t shape);
  void free_slowly(BlockHandle handle);
  bool free_own(Thread& thread, Slab& slab, BlockName name);

  // With mutex_ held.
  BlockHandle take_shared(Slab& slab, Thread* thread) noexcept;
  void emptied(Slab& slab) noexcept;
  void share(Slab& slab) noexcept;
  void unlist(Slab& slab) noexcept;
  void note_use(Slab& slab, Thread* thread) const noexcept;
  Slab& make_slab(std::size_t shape);
  void return_slab(Slab& slab);
  void disown(Slab& slab);
  bool reclaim(std::size_t shape);

  const std::uint64_t id_;
  const std::shared_ptr<SlabSource> source_;
  const SlabLimits limits_;
  const std::uint32_t retired_;  // the generation of a block that is used up
  const bool owned_;
  const std::size_t shapes_;
  const std::size_t slots_;
  std::unique_ptr<Slab[]> table_;  // slabs_max for each shape; all a slot ever was stays in it

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<List> lists_;  // of each shape
  std::size_t held_ = 0;
  std::uint64_t made_ = 0;
  std::uint64_t returned_ = 0;
  std::uint64_t taken_ = 0;
  std::uint64_t return_failures_ = 0;
};

}  // namespace gpupool

#include "memory/slab_inline.h"

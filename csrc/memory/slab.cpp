// The doors of the slab allocator, and what its calls do when the common case does not apply.
#include "memory/slab.h"

#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "memory/slab_lists.h"

namespace gpupool {
namespace {

constexpr std::size_t slots_limit = std::size_t{1} << 16;
constexpr std::size_t blocks_limit = std::size_t{1} << 16;

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

SlabLimits checked(SlabLimits limits, std::size_t slab_bytes, std::size_t shapes_limit) {
  const std::size_t shapes = limits.block_bytes.size();
  if (shapes == 0 || shapes > shapes_limit) {
    throw UsageError("a slab allocator needs 1 to " + std::to_string(shapes_limit) +
                     " sizes of blocks");
  }
  for (const std::size_t bytes : limits.block_bytes) {
    if (bytes == 0 || bytes > slab_bytes || slab_bytes / bytes > blocks_limit) {
      throw UsageError("blocks of " + std::to_string(bytes) + " bytes: a slab of " +
                       std::to_string(slab_bytes) + " bytes must hold 1 to 65536");
    }
  }
  if (limits.slabs_max == 0 || limits.slabs_max > slots_limit / shapes) {
    throw UsageError("the limit on slabs must be 1 to " + std::to_string(slots_limit / shapes) +
                     " with " + std::to_string(shapes) + " sizes of blocks");
  }
  if (limits.block_uses_max == 0 || limits.block_uses_max > 0x7FFFFFFF) {
    throw UsageError("the uses of a block must be 1 to 2147483647");
  }
  return limits;
}

}  // namespace

StaleBlock::StaleBlock(BlockName name, const char* what)
    : UsageError("block " + std::to_string(name.block) + " of slab " + std::to_string(name.slab) +
                 " (generation " + std::to_string(name.generation) + ") " + what),
      name_(name) {}

std::shared_ptr<SlabAllocator> SlabAllocator::create(std::shared_ptr<SlabSource> source,
                                                     SlabLimits limits) {
  return std::shared_ptr<SlabAllocator>(new SlabAllocator(std::move(source), std::move(limits)));
}

SlabAllocator::SlabAllocator(std::shared_ptr<SlabSource> source, SlabLimits limits)
    : id_(next_id()),
      source_(std::move(source)),
      limits_(checked(std::move(limits), source_->slab_bytes(), shapes_max)),
      retired_(2 * limits_.block_uses_max),
      owned_(limits_.thread_owned && can_disown()),
      shapes_(limits_.block_bytes.size()),
      slots_(shapes_ * limits_.slabs_max),
      table_(std::make_unique<Slab[]>(slots_)),
      lists_(shapes_) {
  for (std::size_t slot = 0; slot < slots_; ++slot) {
    Slab& slab = table_[slot];
    slab.slot = static_cast<std::uint32_t>(slot);
    slab.shape = static_cast<std::uint32_t>(slot / limits_.slabs_max);
    slab.block_bytes = limits_.block_bytes[slab.shape];
    slab.blocks = static_cast<std::uint32_t>(source_->slab_bytes() / slab.block_bytes);
  }
  for (std::size_t shape = 0; shape < shapes_; ++shape) {
    lists_[shape].unmade = static_cast<std::uint32_t>(shape * limits_.slabs_max);
  }
}

SlabAllocator::~SlabAllocator() {
  std::optional<bool> ended;  // asked once, where a block is in use
  for (std::size_t slot = 0; slot < slots_; ++slot) {
    const Slab& slab = table_[slot];
    if (!slab.held) continue;
    const DevicePtr run = slab.address.load(std::memory_order_relaxed);
    if (blocks_live(slab) > 0) {
      if (!ended) ended = source_->ended();
      if (!*ended) {
        source_->abandon(run);
        continue;
      }
    }
    try {
      source_->release(run);
    } catch (...) {  // the source keeps what it cannot take back
    }
  }
}

// Exact while no other thread is calling.
std::uint32_t SlabAllocator::blocks_live(const Slab& slab) noexcept {
  const std::uint32_t usable = slab.usable.load(std::memory_order_relaxed);
  const std::uint32_t free = slab.free.load(std::memory_order_relaxed);
  return usable > free ? usable - free : 0;
}

void SlabAllocator::refuse(BlockName name) const {
  const char* what = "never existed";
  if (name.slab < slots_ && name.block < table_[name.slab].blocks && (name.generation & 1) != 0) {
    const Slab& slab = table_[name.slab];
    const std::uint32_t now = slab.made.load(std::memory_order_acquire)
                                  ? slab.generations[name.block].load(std::memory_order_relaxed)
                                  : 0;
    if (now == name.generation + 1) what = "was freed already";
    if (now > name.generation + 1) what = "was freed already, and handed out again since";
  }
  throw StaleBlock(name, what);
}

SlabAllocator::Slab& SlabAllocator::named(BlockName name) const {
  if (name.slab >= slots_ || !live(table_[name.slab], name)) refuse(name);
  return table_[name.slab];
}

BlockHandle SlabAllocator::allocate_slowly(std::size_t shape) {
  if (shape >= shapes_) throw UsageError("there is no shape " + std::to_string(shape));
  Thread* thread = join();
  if (thread != nullptr) {
    // The thread may be back from another allocator, with nothing amiss; then its own slabs.
    for (Slab* slab = thread->current[shape]; slab != nullptr;
         slab = thread->next(table_.get(), shape)) {
      const Working working(*thread, *slab);
      const std::uint32_t free = slab->free.load(std::memory_order_relaxed);
      if (working.owner() && free > 0) {
        thread->current[shape] = slab;
        return take(*slab, free);
      }
    }
  }
  const std::lock_guard lock(mutex_);
  List& list = lists_[shape];
  while (list.first == nullptr) {
    try {
      Slab& slab = make_slab(shape);
      if (thread == nullptr) {
        share(slab);
        return take_shared(slab, nullptr);
      }
      slab.owner.store(thread, std::memory_order_relaxed);
      thread->current[shape] = &slab;
      return take(
          slab, slab.free.load(
                    std::memory_order_relaxed));  // nobody else can have a handle of it to free yet
    } catch (...) {
      if (!reclaim(shape)) throw;
    }
  }
  return take_shared(*list.first, thread);
}

void SlabAllocator::put_or_retire(Slab& slab, BlockName name) const noexcept {
  if (name.generation + 1 == retired_) {
    slab.generations[name.block].store(retired_, std::memory_order_relaxed);
    slab.usable.store(slab.usable.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
  } else {
    put(slab, name, slab.free.load(std::memory_order_relaxed));
  }
}

bool SlabAllocator::free_own(Thread& thread, Slab& slab, BlockName name) {
  bool has_room = false;
  bool empty = false;
  {
    const Working working(thread, slab);
    if (!working.owner() || !live(slab, name)) return false;
    put_or_retire(slab, name);
    const std::uint32_t free = slab.free.load(std::memory_order_relaxed);
    const std::uint32_t usable = slab.usable.load(std::memory_order_relaxed);
    has_room = free > 0;
    empty = free == usable && (thread.current[slab.shape] != &slab || usable == 0);
  }
  if (has_room && !empty) thread.enqueue(slab);
  if (empty) {
    const std::lock_guard lock(mutex_);
    // Another thread may have taken the slab, and used it, since.
    if (slab.owner.load(std::memory_order_relaxed) == &thread &&
        slab.free.load(std::memory_order_relaxed) == slab.usable.load(std::memory_order_relaxed)) {
      slab.owner.store(nullptr, std::memory_order_relaxed);
      emptied(slab);
    }
  }
  return true;
}

void SlabAllocator::free_slowly(BlockHandle handle) {
  const BlockName name = name_of(handle);
  Slab& slab = named(name);
  Thread* thread = find();
  if (thread != nullptr && free_own(*thread, slab, name)) return;
  const std::lock_guard lock(mutex_);
  static_cast<void>(named(name));  // checked again, under the lock
  disown(slab);
  static_cast<void>(named(name));  // and again: its owner may just have freed it
  put_or_retire(slab, name);
  note_use(slab, thread);
  if (slab.free.load(std::memory_order_relaxed) == slab.usable.load(std::memory_order_relaxed)) {
    emptied(slab);
  } else {
    share(slab);
  }
}

std::size_t SlabAllocator::shape_for(std::size_t bytes) const {
  std::size_t best = shapes_;
  for (std::size_t shape = 0; shape < shapes_; ++shape) {
    if (block_bytes(shape) < bytes) continue;
    if (best == shapes_ || block_bytes(shape) < block_bytes(best)) best = shape;
  }
  if (best == shapes_) {
    throw UsageError("no block is as large as " + std::to_string(bytes) + " bytes");
  }
  return best;
}

std::size_t SlabAllocator::block_bytes(std::size_t shape) const {
  if (shape >= shapes_) throw UsageError("there is no shape " + std::to_string(shape));
  return limits_.block_bytes[shape];
}

SlabStatistics SlabAllocator::statistics() const {
  const std::lock_guard lock(mutex_);
  SlabStatistics all;
  all.shapes.resize(shapes_);
  for (std::size_t shape = 0; shape < shapes_; ++shape) {
    all.shapes[shape].block_bytes = limits_.block_bytes[shape];
  }
  for (std::size_t slot = 0; slot < slots_; ++slot) {
    const Slab& slab = table_[slot];
    if (!slab.held) continue;
    ShapeStatistics& of = all.shapes[slab.shape];
    ++of.slabs;
    of.blocks += slab.usable.load(std::memory_order_relaxed);
    of.blocks_live += blocks_live(slab);
  }
  for (const ShapeStatistics& of : all.shapes) {
    all.slabs += of.slabs;
    all.bytes_live += of.blocks_live * of.block_bytes;
  }
  all.bytes_held = all.slabs * source_->slab_bytes();
  if (all.bytes_held > 0) {
    all.fragmentation =
        1.0 - static_cast<double>(all.bytes_live) / static_cast<double>(all.bytes_held);
  }
  all.slabs_made = made_;
  all.slabs_returned = returned_;
  all.slabs_taken = taken_;
  all.return_failures = return_failures_;
  return all;
}

}  // namespace gpupool

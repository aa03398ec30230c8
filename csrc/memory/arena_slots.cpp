#include "memory/arena_slots.h"

#include <sys/types.h>

#include <array>
#include <cstdio>
#include <exception>
#include <utility>

namespace gpupool {
namespace {

struct Holding {
  DriverPtr driver;
  ReservationPtr reservation;
  std::shared_ptr<Arena> arena;
};

struct Slot {
  std::mutex mutex;
  Holding holding;    // empty: the slot is not taken
  bool open = false;  // there may be more allocations
  std::uint64_t refused_frees = 0;

  // With the mutex held: what is to be let go once it is not.
  Holding take_if_done() {
    if (open || !holding.arena || holding.arena->live_blocks() > 0) return {};
    return std::exchange(holding, {});
  }
};

// Never destroyed: another library may free until the process ends.
std::array<Slot, arena_slots>& slots() {
  static auto& all = *new std::array<Slot, arena_slots>;
  return all;
}

void* allocate(Slot& slot, std::size_t bytes, int device) noexcept {
  try {
    const std::lock_guard lock(slot.mutex);
    if (!slot.open || device != slot.holding.driver->ordinal()) return nullptr;
    return reinterpret_cast<void*>(slot.holding.arena->allocate(bytes).value_or(0));
  } catch (const std::exception&) {
    return nullptr;  // no bytes were asked for, or there is no host memory
  }
}

void free(Slot& slot, void* block) noexcept {
  if (block == nullptr) return;
  try {
    Holding holding;
    {
      const std::lock_guard lock(slot.mutex);
      holding = slot.holding;
    }
    if (!holding.arena) throw UsageError("a block was freed of an allocator that has none");
    // As cudaFree does: work on any stream may still touch it.
    GPUPOOL_CALL(holding.driver, context_synchronize);
    holding.arena->free(reinterpret_cast<DevicePtr>(block));
    Holding done;  // let go after the lock
    const std::lock_guard lock(slot.mutex);
    done = slot.take_if_done();
  } catch (const std::exception& error) {
    const std::lock_guard lock(slot.mutex);
    ++slot.refused_frees;
    std::fprintf(stderr, "gpupool: a free of %p was refused: %s\n", block, error.what());
  }
}

std::string symbol(const char* what, std::size_t index) {
  const char digits[] = {static_cast<char>('0' + index / 8), static_cast<char>('0' + index % 8)};
  return std::string("gpupool_torch_") + what + "_" + std::string(digits, 2);
}

void* allocate_for_cupy(void* slot, std::size_t bytes, int device) {
  return allocate(*static_cast<Slot*>(slot), bytes, device);
}

void free_for_cupy(void* slot, void* block, int) { free(*static_cast<Slot*>(slot), block); }

}  // namespace

ArenaSlot::ArenaSlot(DriverPtr driver, ReservationPtr reservation, std::shared_ptr<Arena> arena) {
  Holding holding{std::move(driver), std::move(reservation), std::move(arena)};
  for (index_ = 0; index_ < arena_slots; ++index_) {
    Slot& slot = slots()[index_];
    const std::lock_guard lock(slot.mutex);
    if (slot.holding.arena) continue;
    slot.holding = std::move(holding);
    slot.open = true;
    slot.refused_frees = 0;
    return;
  }
  throw UsageError("all " + std::to_string(arena_slots) +
                   " allocators of this process are in use: let one go, and the tensors it made");
}

ArenaSlot::~ArenaSlot() {
  Holding done;  // let go after the lock
  Slot& slot = slots()[index_];
  const std::lock_guard lock(slot.mutex);
  slot.open = false;
  done = slot.take_if_done();
}

std::string ArenaSlot::torch_allocate() const { return symbol("allocate", index_); }
std::string ArenaSlot::torch_free() const { return symbol("free", index_); }

std::uintptr_t ArenaSlot::cupy_parameter() const noexcept {
  return reinterpret_cast<std::uintptr_t>(&slots()[index_]);
}
std::uintptr_t ArenaSlot::cupy_allocate() noexcept {
  return reinterpret_cast<std::uintptr_t>(&allocate_for_cupy);
}
std::uintptr_t ArenaSlot::cupy_free() noexcept {
  return reinterpret_cast<std::uintptr_t>(&free_for_cupy);
}

std::uint64_t ArenaSlot::refused_frees() const {
  Slot& slot = slots()[index_];
  const std::lock_guard lock(slot.mutex);
  return slot.refused_frees;
}

std::size_t ArenaSlot::taken() {
  std::size_t count = 0;
  for (Slot& slot : slots()) {
    const std::lock_guard lock(slot.mutex);
    count += slot.holding.arena != nullptr;
  }
  return count;
}

}  // namespace gpupool

// Found by name with dlsym.
#define GPUPOOL_EXPORT extern "C" __attribute__((visibility("default"), used))
#define GPUPOOL_TORCH(octal)                                                                       \
  GPUPOOL_EXPORT void* gpupool_torch_allocate_##octal(ssize_t bytes, int device, void*) {          \
    return gpupool::allocate(gpupool::slots()[0##octal], static_cast<std::size_t>(bytes), device); \
  }                                                                                                \
  GPUPOOL_EXPORT void gpupool_torch_free_##octal(void* block, ssize_t, int, void*) {               \
    gpupool::free(gpupool::slots()[0##octal], block);                                              \
  }
#define GPUPOOL_TORCH_EIGHT(digit) \
  GPUPOOL_TORCH(digit##0)          \
  GPUPOOL_TORCH(digit##1)          \
  GPUPOOL_TORCH(digit##2)          \
  GPUPOOL_TORCH(digit##3)          \
  GPUPOOL_TORCH(digit##4)          \
  GPUPOOL_TORCH(digit##5)          \
  GPUPOOL_TORCH(digit##6)          \
  GPUPOOL_TORCH(digit##7)
GPUPOOL_TORCH_EIGHT(0)
GPUPOOL_TORCH_EIGHT(1)
GPUPOOL_TORCH_EIGHT(2)
GPUPOOL_TORCH_EIGHT(3)
GPUPOOL_TORCH_EIGHT(4)
GPUPOOL_TORCH_EIGHT(5)
GPUPOOL_TORCH_EIGHT(6)
GPUPOOL_TORCH_EIGHT(7)

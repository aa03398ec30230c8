// Arenas by number, for other libraries' allocators: they call functions of C, which know nothing
// of regions.
//
// torch gives its functions no pointer of ours, so there is a pair of them for each slot, found in
// this library by name: gpupool_torch_allocate_00, gpupool_torch_free_00 and so on to 77, octal.
// CuPy gives a pointer, which is the slot's. Neither may be let go before the other library has
// freed all it has, so slots are never destroyed, and one is handed out again only once it is
// empty.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "memory/arena.h"
#include "memory/memory.h"

namespace gpupool {

inline constexpr std::size_t arena_slots = 64;

// What a slot does on allocation and free, as torch and CuPy expect it of cudaMalloc and cudaFree:
// null if there is no room, or for another device than the driver's; a free waits for all work of
// the process on the device first. A free that is refused is counted, and said on stderr.
class ArenaSlot {
 public:
  // Throws UsageError if all are taken.
  ArenaSlot(DriverPtr driver, ReservationPtr reservation, std::shared_ptr<Arena> arena);
  // Nothing more is allocated. The addresses stay reserved, and the slot taken, until all that was
  // is freed.
  ~ArenaSlot();
  ArenaSlot(const ArenaSlot&) = delete;
  ArenaSlot& operator=(const ArenaSlot&) = delete;

  [[nodiscard]] std::size_t index() const noexcept { return index_; }
  // Symbols of void*(ssize_t bytes, int device, void* stream) and
  // void(void* block, ssize_t bytes, int device, void* stream).
  [[nodiscard]] std::string torch_allocate() const;
  [[nodiscard]] std::string torch_free() const;
  // Addresses: what to pass first, void*(void*, size_t bytes, int device) and
  // void(void*, void* block, int device).
  [[nodiscard]] std::uintptr_t cupy_parameter() const noexcept;
  [[nodiscard]] static std::uintptr_t cupy_allocate() noexcept;
  [[nodiscard]] static std::uintptr_t cupy_free() noexcept;
  [[nodiscard]] std::uint64_t refused_frees() const;
  [[nodiscard]] static std::size_t taken();

 private:
  std::size_t index_;
};

}  // namespace gpupool

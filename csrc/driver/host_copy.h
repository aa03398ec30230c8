// Copies of the host driver, which go past the caches where they are large.
#pragma once

#include <cstddef>
#include <span>

namespace gpupool::host {

// As memcpy, which itself keeps to the caches until one copy is larger than the driver's ever are.
void copy_bytes(void* destination, const void* source, std::size_t bytes) noexcept;

// One way to copy, whatever the size.
struct CopyPath {
  const char* name;
  void (*run)(std::byte* destination, const std::byte* source, std::size_t bytes) noexcept;
};

// Those that this processor can run, of which the last is used where it matters. For tests.
[[nodiscard]] std::span<const CopyPath> copy_paths() noexcept;

}  // namespace gpupool::host

// Addresses and memory of the system, for the host driver and for images.
#pragma once

#include <cstddef>

namespace gpupool {

// Memory that the system can still give without taking it from someone, in bytes.
[[nodiscard]] std::size_t available_bytes();

// Of x86-64, and of arm64 with small pages of 4 KiB.
inline constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;

// Keeps a range of addresses that begins at a multiple of `alignment`, a power of two, with nothing
// to be touched in it, until munmap. Null, and errno, where the system has none.
[[nodiscard]] std::byte* keep_addresses(std::size_t bytes, std::size_t alignment) noexcept;

// Puts the file `fd` into a range kept before, from `offset` of the file. False, and errno, if the
// system does not.
[[nodiscard]] bool map_file(std::byte* at, std::size_t bytes, int protection, int fd,
                            std::size_t offset = 0) noexcept;

// Puts addresses with nothing to be touched in place of whatever is mapped there. False, and errno,
// if the system does not.
[[nodiscard]] bool map_nothing(std::byte* at, std::size_t bytes) noexcept;

// Has the system put memory behind the memfd `fd`, whose first `bytes` are mapped at `view`, in
// huge pages where it gives them, which also makes it a hundredth of the time to map them
// elsewhere; else in small ones (before Linux 6.1, say, or with transparent huge pages off). What
// is in them stays. It is quick where nothing was touched yet. What does not fill a huge page is
// left as it is; so is the rest once the system has no more memory for it. Of much memory a few
// threads do a part each, which have ended when this returns; fewer where they cannot be started.
void put_huge_pages(int fd, const std::byte* view, std::size_t bytes) noexcept;

}  // namespace gpupool

#include "driver/system_memory.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <exception>
#include <fstream>
#include <limits>
#include <string>
#include <thread>

namespace gpupool {
namespace {

// MADV_COLLAPSE and MADV_POPULATE_WRITE, which older headers lack.
constexpr int collapse = 25;
constexpr int populate = 23;

constexpr std::size_t small_page_bytes = 4096;

// For fewer pages a thread is not worth its start.
constexpr std::size_t pages_a_thread = 16;
constexpr std::size_t threads_max = 4;

constexpr int nothing = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

// Puts small pages behind as much memory as a huge page has, at `at` of the file; what is in them
// stays. False if the system does not.
bool put_small_pages(int fd, std::byte* memory, std::size_t at) noexcept {
  if (madvise(memory, huge_page_bytes, populate) == 0) return true;
  // Before Linux 5.14. What has no memory behind it would end the process when it is touched; to
  // read is enough, and changes nothing that others write there.
  if (errno != EINVAL || fallocate(fd, 0, static_cast<off_t>(at), huge_page_bytes) != 0) {
    return false;
  }
  for (std::size_t byte = 0; byte < huge_page_bytes; byte += small_page_bytes) {
    static_cast<void>(*static_cast<const volatile std::byte*>(memory + byte));
  }
  return true;
}

}  // namespace

std::size_t available_bytes() {
  std::ifstream info("/proc/meminfo");
  std::string name;
  std::size_t kib = 0;
  while (info >> name >> kib) {
    if (name == "MemAvailable:") return kib * 1024;
    info.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return 0;
}

std::byte* keep_addresses(std::size_t bytes, std::size_t alignment) noexcept {
  if (bytes > std::numeric_limits<std::size_t>::max() - alignment) {
    errno = ENOMEM;
    return nullptr;
  }
  // More than that, of which what lies before and behind goes back.
  const std::size_t padded = bytes + alignment;
  void* const raw = mmap(nullptr, padded, PROT_NONE, nothing, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  auto* const start = static_cast<std::byte*>(raw);
  const std::size_t before = (0 - reinterpret_cast<std::uintptr_t>(start)) & (alignment - 1);
  std::byte* const kept = start + before;
  if (before > 0) munmap(start, before);
  munmap(kept + bytes, padded - before - bytes);
  return kept;
}

bool map_file(std::byte* at, std::size_t bytes, int protection, int fd,
              std::size_t offset) noexcept {
  return mmap(at, bytes, protection, MAP_SHARED | MAP_FIXED, fd, static_cast<off_t>(offset)) !=
         MAP_FAILED;
}

bool map_nothing(std::byte* at, std::size_t bytes) noexcept {
  return mmap(at, bytes, PROT_NONE, nothing | MAP_FIXED, -1, 0) != MAP_FAILED;
}

void put_huge_pages(int fd, const std::byte* view, std::size_t bytes) noexcept {
  const std::size_t pages = bytes / huge_page_bytes;
  std::atomic<std::size_t> next{0};
  // The system says yes where none can lie, and does nothing.
  std::atomic<bool> huge{reinterpret_cast<std::uintptr_t>(view) % huge_page_bytes == 0};
  // It takes the place of small pages, so that there must be one: one alone, for to fill all 512
  // and have them copied costs more than it saves.
  const auto put = [&](std::byte* memory, std::size_t at) {
    if (fallocate(fd, 0, static_cast<off_t>(at), 1) != 0) return false;
    if (huge) {
      if (madvise(memory, huge_page_bytes, collapse) == 0) return true;
      if (errno == EBUSY) return false;  // small ones would be beyond the limit of a cgroup as well
      huge = false;
    }
    return put_small_pages(fd, memory, at);
  };
  const auto work = [&] {
    for (std::size_t page = next++; page < pages; page = next++) {
      const std::size_t at = page * huge_page_bytes;
      if (!put(const_cast<std::byte*>(view + at), at)) next = pages;
    }
  };
  const std::size_t useful = std::min(
      {pages / pages_a_thread, threads_max, std::size_t{std::thread::hardware_concurrency()}});
  std::array<std::jthread, threads_max> others;
  try {
    for (std::size_t i = 1; i < useful; ++i) others[i] = std::jthread(work);
  } catch (const std::exception&) {
    // Without more threads it takes longer.
  }
  work();
}

}  // namespace gpupool

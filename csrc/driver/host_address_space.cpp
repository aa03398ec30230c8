#include "driver/host_address_space.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "driver/system_memory.h"

namespace gpupool::host {
namespace {

std::byte* pointer(DevicePtr address) { return reinterpret_cast<std::byte*>(address); }

Status from_errno() {
  switch (errno) {
    case ENOMEM:
    case ENFILE:
    case EMFILE:
    case ENOSPC: return Status::out_of_memory;
    default: return Status::unknown;
  }
}

// CUDA pins what it registers, which must be there. An asynchronous msync looks at the mappings of
// any length without a look at their pages, and writes nothing.
bool mapped_throughout(std::uintptr_t start, std::size_t bytes) {
  const std::uintptr_t into = start % static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  return msync(pointer(start - into), into + bytes, MS_ASYNC) == 0;
}

}  // namespace

Pages::Memory::~Memory() {
  if (fd >= 0) close(fd);
}

Status Pages::insert(PageHandle* page, MemoryPtr memory) {
  std::lock_guard lock(mutex_);
  pages_.emplace(next_, std::move(memory));
  *page = next_++;
  return Status::success;
}

Status Pages::create(PageHandle* page, std::size_t bytes) {
  if (!aligned(bytes)) return Status::invalid_value;
  // Asked for more than there is, the kernel would end processes rather than say no.
  if (bytes > available_bytes()) return Status::out_of_memory;
  const auto memory = std::make_shared<Memory>();
  memory->bytes = bytes;
  memory->fd = memfd_create("gpupool-page", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (memory->fd < 0) return from_errno();
  if (ftruncate(memory->fd, static_cast<off_t>(bytes)) != 0) return from_errno();
  std::byte* const view = keep_addresses(bytes, huge_page_bytes);
  if (view == nullptr) return from_errno();
  Status status = Status::success;
  if (map_file(view, bytes, PROT_WRITE, memory->fd)) {
    put_huge_pages(memory->fd, view, bytes);
    // What had no memory behind it would end the process when it is touched.
    if (fallocate(memory->fd, 0, 0, static_cast<off_t>(bytes)) == 0) {
      std::memset(view, poison, bytes);
    } else {
      status = from_errno();
    }
  } else {
    status = from_errno();
  }
  munmap(view, bytes);
  if (status != Status::success) return status;
  // Sealed, so that a process that holds a descriptor cannot make another one fault.
  fcntl(memory->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  return insert(page, memory);
}

Status Pages::release(PageHandle page) {
  std::lock_guard lock(mutex_);
  return pages_.erase(page) == 1 ? Status::success : Status::invalid_value;
}

Status Pages::export_fd(int* fd, PageHandle page) {
  const MemoryPtr memory = find(page);
  if (!memory) return Status::invalid_value;
  const int copy = fcntl(memory->fd, F_DUPFD_CLOEXEC, 3);
  if (copy < 0) return from_errno();
  *fd = copy;
  return Status::success;
}

Status Pages::import_fd(PageHandle* page, int fd) {
  struct stat info{};
  // Only what cannot shrink: a touch beyond the end of a file would kill this process.
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) return Status::invalid_value;
  if (fstat(fd, &info) != 0) return Status::invalid_value;
  const auto bytes = static_cast<std::size_t>(info.st_size);
  if (!aligned(bytes)) return Status::invalid_value;
  const auto memory = std::make_shared<Memory>();
  memory->bytes = bytes;
  memory->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (memory->fd < 0) return from_errno();
  return insert(page, memory);
}

Pages::MemoryPtr Pages::find(PageHandle page) const {
  std::lock_guard lock(mutex_);
  const auto it = pages_.find(page);
  return it == pages_.end() ? nullptr : it->second;
}

AddressSpace::~AddressSpace() {
  for (const auto& [address, bytes] : reservations_) munmap(pointer(address), bytes);
}

Status AddressSpace::reserve(DevicePtr* address, std::size_t bytes) {
  if (!pages_.aligned(bytes)) return Status::invalid_value;
  std::byte* const kept = keep_addresses(bytes, pages_.granularity_bytes());
  if (kept == nullptr) return from_errno();
  const auto base = reinterpret_cast<DevicePtr>(kept);
  std::unique_lock lock(mutex_);
  try {
    reservations_.emplace(base, bytes);
  } catch (...) {
    munmap(kept, bytes);
    throw;
  }
  *address = base;
  return Status::success;
}

Status AddressSpace::free(DevicePtr address, std::size_t bytes) {
  std::unique_lock lock(mutex_);
  const auto it = reservations_.find(address);
  if (it == reservations_.end() || it->second != bytes) return Status::invalid_value;
  const auto mapped = mappings_.lower_bound(address);
  if (mapped != mappings_.end() && mapped->first < address + bytes) return Status::invalid_value;
  munmap(pointer(address), bytes);
  reservations_.erase(it);
  return Status::success;
}

Status AddressSpace::map(DevicePtr address, std::size_t bytes, PageHandle page) {
  const Pages::MemoryPtr memory = pages_.find(page);
  if (!memory) return Status::invalid_value;
  std::unique_lock lock(mutex_);
  if (bytes != memory->bytes || address % pages_.granularity_bytes() != 0 ||
      !reserved(address, bytes)) {
    return Status::invalid_value;
  }
  const auto next = mappings_.lower_bound(address);
  if (next != mappings_.end() && next->first < address + bytes) return Status::invalid_value;
  if (next != mappings_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second.bytes > address) return Status::invalid_value;
  }
  mappings_.emplace(address, Mapping{bytes, Access::none});
  if (!map_file(pointer(address), bytes, PROT_NONE, memory->fd)) {
    const Status status = from_errno();
    mappings_.erase(address);
    return status;
  }
  return Status::success;
}

Status AddressSpace::unmap(DevicePtr address, std::size_t bytes) {
  std::unique_lock lock(mutex_);
  if (!exact(address, bytes)) return Status::invalid_value;
  // One call puts inaccessible memory back in place of all mappings of the range.
  if (!map_nothing(pointer(address), bytes)) return from_errno();
  mappings_.erase(mappings_.find(address), mappings_.lower_bound(address + bytes));
  return Status::success;
}

Status AddressSpace::set_access(DevicePtr address, std::size_t bytes, Access access) {
  std::unique_lock lock(mutex_);
  if (!exact(address, bytes)) return Status::invalid_value;
  const bool writable = access == Access::write;
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  if (mprotect(pointer(address), bytes, protection) != 0) return from_errno();
  // Page tables filled here in one go, rather than by a fault per 4 KiB in the first copy.
  madvise(pointer(address), bytes, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
  for (auto it = mappings_.find(address); it != mappings_.end() && it->first < address + bytes;
       ++it) {
    it->second.access = access;
  }
  return Status::success;
}

bool AddressSpace::accessible(DevicePtr address, std::size_t bytes, Access wanted) const {
  std::shared_lock lock(mutex_);
  return covered(address, bytes, wanted);
}

bool AddressSpace::reserved(DevicePtr address, std::size_t bytes) const {
  auto it = reservations_.upper_bound(address);
  if (it == reservations_.begin()) return false;
  --it;
  const std::size_t offset = address - it->first;
  return bytes <= it->second && offset <= it->second - bytes;
}

bool AddressSpace::covered(DevicePtr address, std::size_t bytes, Access wanted) const {
  const DevicePtr end = address + bytes;
  if (end < address) return false;
  auto it = mappings_.upper_bound(address);
  if (it == mappings_.begin()) return false;
  for (--it; it != mappings_.end() && it->first <= address; ++it) {
    if (it->second.access < wanted) return false;
    address = std::max(address, it->first + it->second.bytes);
    if (address >= end) return true;
  }
  return false;
}

bool AddressSpace::exact(DevicePtr address, std::size_t bytes) const {
  if (bytes == 0 || mappings_.find(address) == mappings_.end()) return false;
  if (!covered(address, bytes, Access::none)) return false;
  const auto last = std::prev(mappings_.lower_bound(address + bytes));
  return last->first + last->second.bytes == address + bytes;
}

Status Registry::add(void* memory, std::size_t bytes) {
  const auto start = reinterpret_cast<std::uintptr_t>(memory);
  if (memory == nullptr || bytes == 0 || start + bytes < start) return Status::invalid_value;
  if (!mapped_throughout(start, bytes)) return Status::invalid_value;
  std::unique_lock lock(mutex_);
  const auto next = registered_.lower_bound(start);
  const bool before_next = next == registered_.end() || next->first >= start + bytes;
  const bool behind_previous =
      next == registered_.begin() || std::prev(next)->first + std::prev(next)->second <= start;
  if (!before_next || !behind_previous) return Status::host_memory_already_registered;
  registered_.emplace(start, bytes);
  return Status::success;
}

Status Registry::remove(void* memory) {
  std::unique_lock lock(mutex_);
  return registered_.erase(reinterpret_cast<std::uintptr_t>(memory)) == 1
             ? Status::success
             : Status::host_memory_not_registered;
}

bool Registry::holds(const void* memory, std::size_t bytes) const {
  std::shared_lock lock(mutex_);
  return covered(memory, bytes);
}

bool Registry::covered(const void* memory, std::size_t bytes) const {
  const auto start = reinterpret_cast<std::uintptr_t>(memory);
  auto it = registered_.upper_bound(start);
  if (it == registered_.begin()) return false;
  --it;
  const std::size_t offset = start - it->first;
  return bytes <= it->second && offset <= it->second - bytes;
}

}  // namespace gpupool::host

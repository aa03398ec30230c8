// The host driver's model of a device address space: what is reserved, mapped and accessible.
#pragma once

#include <map>
#include <mutex>
#include <shared_mutex>

#include "driver/driver.h"

namespace gpupool::host {

inline constexpr std::size_t granularity_bytes = std::size_t{2} << 20;
inline constexpr std::uint8_t poison = 0xA5;

// Memory that the system can still give without taking it from someone, in bytes.
std::size_t available_bytes();

// Physical pages as memfds: a page lives while a handle, a mapping or another process holds it.
class Pages {
 public:
  ~Pages();
  Status create(PageHandle* page, std::size_t bytes);
  Status release(PageHandle page);
  Status export_fd(int* fd, PageHandle page);
  Status import_fd(PageHandle* page, int fd);
  // The descriptor and size of a page; false if there is no such page.
  bool find(PageHandle page, int* fd, std::size_t* bytes) const;

 private:
  struct Entry {
    int fd;
    std::size_t bytes;
  };
  Status insert(PageHandle* page, int fd, std::size_t bytes);

  mutable std::mutex mutex_;
  std::map<PageHandle, Entry> pages_;
  PageHandle next_ = 1;
};

class AddressSpace {
 public:
  explicit AddressSpace(Pages& pages) : pages_(pages) {}
  ~AddressSpace();

  Status reserve(DevicePtr* address, std::size_t bytes);
  Status free(DevicePtr address, std::size_t bytes);
  Status map(DevicePtr address, std::size_t bytes, PageHandle page);
  Status unmap(DevicePtr address, std::size_t bytes);
  Status set_access(DevicePtr address, std::size_t bytes);

  bool accessible(DevicePtr address, std::size_t bytes) const;
  // Runs `work` if the range is accessible, and keeps it mapped meanwhile.
  template <typename Work>
  Status touch(DevicePtr address, std::size_t bytes, Work work) const {
    std::shared_lock lock(mutex_);
    if (!covered(address, bytes, true)) return Status::illegal_address;
    work();
    return Status::success;
  }

 private:
  struct Mapping {
    std::size_t bytes;
    bool access;
  };
  bool reserved(DevicePtr address, std::size_t bytes) const;
  bool covered(DevicePtr address, std::size_t bytes, bool with_access) const;
  // Whether whole mappings exactly fill the range.
  bool exact(DevicePtr address, std::size_t bytes) const;

  Pages& pages_;
  mutable std::shared_mutex mutex_;
  std::map<DevicePtr, std::size_t> reservations_;
  std::map<DevicePtr, Mapping> mappings_;
};

}  // namespace gpupool::host

// The host driver's model of memory: what is reserved, mapped and accessible, and what of the
// host is registered.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>

#include "driver/driver.h"

namespace gpupool::host {

inline constexpr std::uint8_t poison = 0xA5;

// Physical pages as memfds: a page lives while a handle, a mapping or another process holds it.
class Pages {
 public:
  explicit Pages(std::size_t granularity_bytes) : granularity_bytes_(granularity_bytes) {}
  [[nodiscard]] std::size_t granularity_bytes() const noexcept { return granularity_bytes_; }
  // Whether it is a whole number of granules, and at least one.
  [[nodiscard]] bool aligned(std::size_t bytes) const noexcept {
    return bytes != 0 && bytes % granularity_bytes_ == 0;
  }
  Status create(PageHandle* page, std::size_t bytes);
  Status release(PageHandle page);
  Status export_fd(int* fd, PageHandle page);
  Status import_fd(PageHandle* page, int fd);
  // Open for as long as somebody looks at it, also when the page is released meanwhile: a number of
  // a descriptor that is closed may be another page's at once.
  struct Memory {
    Memory() = default;
    ~Memory();
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    int fd = -1;
    std::size_t bytes = 0;
  };
  using MemoryPtr = std::shared_ptr<const Memory>;
  // Null if there is no such page.
  [[nodiscard]] MemoryPtr find(PageHandle page) const;

 private:
  Status insert(PageHandle* page, MemoryPtr memory);

  const std::size_t granularity_bytes_;
  mutable std::mutex mutex_;
  std::map<PageHandle, MemoryPtr> pages_;
  PageHandle next_ = 1;
};

// What of a mapping is allowed; whoever may write may read.
enum class Access { none, read, write };

class AddressSpace {
 public:
  explicit AddressSpace(Pages& pages) : pages_(pages) {}
  ~AddressSpace();

  Status reserve(DevicePtr* address, std::size_t bytes);
  Status free(DevicePtr address, std::size_t bytes);
  Status map(DevicePtr address, std::size_t bytes, PageHandle page);
  Status unmap(DevicePtr address, std::size_t bytes);
  Status set_access(DevicePtr address, std::size_t bytes, Access access);

  bool accessible(DevicePtr address, std::size_t bytes, Access wanted) const;
  // Runs `work` if the range is so accessible, and keeps it mapped meanwhile.
  template <typename Work>
  Status touch(DevicePtr address, std::size_t bytes, Access wanted, const Work& work) const {
    std::shared_lock lock(mutex_);
    if (!covered(address, bytes, wanted)) return Status::illegal_address;
    return work();
  }
  template <typename Ranges, typename Work>
  Status touch_all(const Ranges& ranges, const Work& work) const {
    std::shared_lock lock(mutex_);
    for (const auto& [address, bytes] : ranges) {
      if (!covered(address, bytes, Access::read)) return Status::illegal_address;
    }
    work();
    return Status::success;
  }

 private:
  struct Mapping {
    std::size_t bytes;
    Access access;
  };
  bool reserved(DevicePtr address, std::size_t bytes) const;
  bool covered(DevicePtr address, std::size_t bytes, Access wanted) const;
  // Whether whole mappings exactly fill the range.
  bool exact(DevicePtr address, std::size_t bytes) const;

  Pages& pages_;
  mutable std::shared_mutex mutex_;
  std::map<DevicePtr, std::size_t> reservations_;
  std::map<DevicePtr, Mapping> mappings_;
};

// Host memory that copies may touch.
class Registry {
 public:
  Status add(void* memory, std::size_t bytes);
  Status remove(void* memory);
  bool holds(const void* memory, std::size_t bytes) const;
  // Runs `work` if the memory is registered, and keeps it so meanwhile.
  template <typename Work>
  Status touch(const void* memory, std::size_t bytes, const Work& work) const {
    std::shared_lock lock(mutex_);
    if (!covered(memory, bytes)) return Status::illegal_address;
    return work();
  }
  // The same of two.
  template <typename Work>
  Status touch(const void* one, std::size_t one_bytes, const void* other, std::size_t other_bytes,
               const Work& work) const {
    std::shared_lock lock(mutex_);
    if (!covered(one, one_bytes) || !covered(other, other_bytes)) return Status::illegal_address;
    return work();
  }

 private:
  bool covered(const void* memory, std::size_t bytes) const;

  mutable std::shared_mutex mutex_;
  std::map<std::uintptr_t, std::size_t> registered_;
};

}  // namespace gpupool::host

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

#include "driver/system_memory.h"
#include "image/image.h"

namespace gpupool {
namespace {

// One registration of 512 GiB or more fails in the CUDA driver.
constexpr std::size_t register_bytes_max = std::size_t{64} << 30;

constexpr std::size_t system_page_bytes = 4096;

[[noreturn]] void fail(const char* call, int error = errno) {
  throw std::system_error(error, std::generic_category(), call);
}

std::size_t in_system_pages(std::size_t bytes) {
  if (bytes > ~std::size_t{0} - system_page_bytes) fail("mmap", ENOMEM);
  return (bytes + system_page_bytes - 1) / system_page_bytes * system_page_bytes;
}

// A descriptor that is closed again unless it is somebody else's.
class Descriptor {
 public:
  Descriptor(int fd, std::size_t bytes) : fd_(fd), own_(fd < 0) {
    if (!own_) return;
    fd_ = memfd_create("gpupool-image", MFD_CLOEXEC);
    if (fd_ < 0) fail("memfd_create");
    if (ftruncate(fd_, static_cast<off_t>(bytes)) != 0) {
      const int error = errno;
      close(fd_);
      fail("ftruncate", error);
    }
  }
  ~Descriptor() {
    if (own_) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
  bool own_;
};

// A mapping beyond the end of its file would kill the process at the first touch.
bool holds(const Extent& extent) {
  struct stat info{};
  if (fstat(extent.fd, &info) != 0) return false;
  const auto size = static_cast<std::size_t>(info.st_size);
  return extent.bytes <= size && extent.offset <= size - extent.bytes;
}

}  // namespace

HostMemory::HostMemory(DriverPtr driver, int fd, std::size_t bytes, std::size_t capacity_bytes)
    : driver_(std::move(driver)),
      capacity_bytes_(in_system_pages(std::max(bytes, capacity_bytes))) {
  if (capacity_bytes_ == 0) throw UsageError("host memory must have at least one byte");
  data_ = keep_addresses(capacity_bytes_, huge_page_bytes);
  if (data_ == nullptr) fail("mmap");
  try {
    grow(fd, bytes);
  } catch (...) {
    let_go();
    throw;
  }
}

HostMemory::HostMemory(DriverPtr driver, std::span<const Extent> extents,
                       std::size_t capacity_bytes)
    : driver_(std::move(driver)), capacity_bytes_(in_system_pages(capacity_bytes)) {
  if (capacity_bytes_ == 0) throw UsageError("host memory must have at least one byte");
  data_ = keep_addresses(capacity_bytes_, huge_page_bytes);
  if (data_ == nullptr) fail("mmap");
  try {
    for (const Extent& extent : extents) add(extent, false);
  } catch (...) {
    let_go();
    throw;
  }
}

HostMemory::~HostMemory() {
  if (let_go() && gone_bytes_) *gone_bytes_ += bytes_;
}

void HostMemory::report_to(std::shared_ptr<std::atomic<std::size_t>> gone_bytes) noexcept {
  gone_bytes_ = std::move(gone_bytes);
}

bool HostMemory::let_go() noexcept {
  take_back(0);
  // What the driver does not let go stays mapped: lost, but nothing else gets these addresses,
  // which could then not be registered.
  if (!stuck_ && data_ != nullptr) munmap(std::exchange(data_, nullptr), capacity_bytes_);
  return data_ == nullptr;
}

void HostMemory::abandon() noexcept {
  pieces_.clear();
  stuck_ = true;
}

std::size_t HostMemory::missing_bytes(std::size_t bytes) const {
  return bytes <= bytes_ ? 0 : in_system_pages(bytes) - bytes_;
}

void HostMemory::grow(int fd, std::size_t bytes) {
  if (bytes > capacity_bytes_) {
    throw UsageError("host memory of at most " + std::to_string(capacity_bytes_) +
                     " bytes cannot have " + std::to_string(bytes));
  }
  const std::size_t missing = missing_bytes(bytes);
  if (missing == 0) return;
  if (stuck_) throw UsageError("host memory that is still registered from a failure cannot grow");
  const Descriptor file(fd, missing);
  add({file.get(), 0, missing}, true);
}

void HostMemory::add(const Extent& extent, bool is_fresh) {
  const std::size_t bytes = extent.bytes;
  if (bytes % system_page_bytes != 0 || extent.offset % system_page_bytes != 0 || bytes == 0 ||
      bytes > capacity_bytes_ - bytes_) {
    throw UsageError("an extent of " + std::to_string(bytes) + " bytes at " +
                     std::to_string(extent.offset) + " cannot be part of host memory of " +
                     std::to_string(capacity_bytes_));
  }
  if (!holds(extent)) {
    throw UsageError("the descriptor holds less than " + std::to_string(bytes) + " bytes");
  }
  const std::size_t before = pieces_.size();
  pieces_.reserve(before + bytes / register_bytes_max + 1);
  // Huge pages take the memory now. Of more than there is, it is taken as it is used.
  const bool huge = is_fresh && bytes >= huge_page_bytes && bytes <= available_bytes();
  if (!map_file(data_ + bytes_, bytes, PROT_READ | PROT_WRITE, extent.fd, extent.offset)) {
    fail("mmap");
  }
  if (huge) put_huge_pages(extent.fd, data_ + bytes_, bytes);
  const std::size_t end = bytes_ + bytes;
  for (std::size_t at = bytes_; at < end; at = pieces_.back().end) {
    const Run piece{at, std::min(end, at + register_bytes_max)};
    const Status status = driver_->host_register(data_ + at, piece.bytes());
    if (status != Status::success) {
      take_back(before);
      // The file is somebody else's again, unless the driver still has part of it.
      if (!stuck_) static_cast<void>(map_nothing(data_ + bytes_, bytes));
      check(*driver_, "host_register", status);
    }
    pieces_.push_back(piece);
  }
  bytes_ = end;
}

void HostMemory::take_back(std::size_t first) noexcept {
  for (; pieces_.size() > first; pieces_.pop_back()) {
    const Status status = driver_->host_unregister(data_ + pieces_.back().begin);
    stuck_ |= status != Status::success;
  }
}

std::vector<Run> HostMemory::cut(Run run) const {
  std::vector<Run> runs;
  for (const Run& piece : pieces_) {
    const Run part{std::max(run.begin, piece.begin), std::min(run.end, piece.end)};
    if (part.begin < part.end) runs.push_back(part);
  }
  return runs;
}

}  // namespace gpupool

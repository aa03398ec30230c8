#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

#include "image/image.h"

namespace gpupool {
namespace {

// One registration of 512 GiB or more fails in the CUDA driver.
constexpr std::size_t register_bytes_max = std::size_t{64} << 30;

[[noreturn]] void fail(const char* call) {
  throw std::system_error(errno, std::generic_category(), call);
}

}  // namespace

HostMemory::HostMemory(DriverPtr driver, int fd, std::size_t bytes)
    : driver_(std::move(driver)), bytes_(bytes) {
  if (bytes == 0) throw UsageError("host memory must have at least one byte");
  int own = -1;
  if (fd < 0) {
    own = memfd_create("gpupool-image", MFD_CLOEXEC);
    if (own < 0) fail("memfd_create");
    if (ftruncate(own, static_cast<off_t>(bytes)) != 0) {
      close(own);
      fail("ftruncate");
    }
    fd = own;
  }
  struct stat info{};
  // A mapping beyond the end of its file would kill the process at the first touch.
  const bool fits = fstat(fd, &info) == 0 && static_cast<std::size_t>(info.st_size) >= bytes;
  void* view = fits ? mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  const int error = errno;
  if (own >= 0) close(own);
  if (!fits) throw UsageError("the descriptor holds less than " + std::to_string(bytes) + " bytes");
  if (view == MAP_FAILED) {
    errno = error;
    fail("mmap");
  }
  data_ = static_cast<std::byte*>(view);
  for (std::size_t at = 0; at < bytes; at += register_bytes_max) {
    const Status status =
        driver_->host_register(data_ + at, std::min(register_bytes_max, bytes - at));
    if (status != Status::success) {
      release(at);
      check(*driver_, "host_register", status);
    }
  }
}

HostMemory::~HostMemory() { release(bytes_); }

void HostMemory::release(std::size_t end) noexcept {
  bool registered = false;
  for (std::size_t at = 0; at < end; at += register_bytes_max) {
    registered |= driver_->host_unregister(data_ + at) != Status::success;
  }
  // What the driver does not let go stays mapped: lost, but nothing else gets these addresses,
  // which could then not be registered.
  if (!registered) munmap(data_, bytes_);
}

}  // namespace gpupool

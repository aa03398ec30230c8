// What the host driver says when the system has no more to give, and what statuses are called.
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "bench.h"

using namespace gpupool;

namespace {

// No descriptor can be opened while it lives.
struct NoDescriptors {
  NoDescriptors() {
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    const rlimit none{0, before.rlim_max};
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  }
  ~NoDescriptors() { setrlimit(RLIMIT_NOFILE, &before); }
  rlimit before{};
};

}  // namespace

TEST(without_descriptors_pages_are_refused_and_nothing_else_is_lost) {
  Bench bench(open_host_driver());
  PageHandle page = 0, other = 0;
  int fd = -1, copy = -1;
  CHECK_OK(bench->page_create(&page, page_bytes));
  CHECK_OK(bench->page_export(&fd, page));
  // UBSan opens a pipe to look at the first object of a type, and takes it for none if it cannot.
  try {
    throw std::system_error(EMFILE, std::generic_category());
  } catch (const std::system_error& error) {
    CHECK_EQ(error.code().value(), EMFILE);
  }
  {
    const NoDescriptors none;
    CHECK_EQ(bench->page_create(&other, page_bytes), Status::out_of_memory);
    CHECK(bench->page_export(&copy, page) != Status::success);
    CHECK(bench->page_import(&other, fd) != Status::success);
    CHECK_THROWS(std::system_error, HostMemory(bench.driver(), -1, page_bytes));
  }
  CHECK_EQ(copy, -1);
  CHECK_EQ(other, 0);
  CHECK_OK(bench->page_import(&other, fd));
  close(fd);
  CHECK_OK(bench->page_release(other));
  CHECK_OK(bench->page_release(page));
}

TEST(every_status_has_cudas_name) {
  const DriverPtr driver = open_host_driver();
  const std::pair<Status, const char*> names[] = {
      {Status::success, "CUDA_SUCCESS"},
      {Status::invalid_value, "CUDA_ERROR_INVALID_VALUE"},
      {Status::out_of_memory, "CUDA_ERROR_OUT_OF_MEMORY"},
      {Status::not_initialized, "CUDA_ERROR_NOT_INITIALIZED"},
      {Status::no_device, "CUDA_ERROR_NO_DEVICE"},
      {Status::invalid_device, "CUDA_ERROR_INVALID_DEVICE"},
      {Status::invalid_handle, "CUDA_ERROR_INVALID_HANDLE"},
      {Status::not_found, "CUDA_ERROR_NOT_FOUND"},
      {Status::not_ready, "CUDA_ERROR_NOT_READY"},
      {Status::illegal_address, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {Status::host_memory_already_registered, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED"},
      {Status::host_memory_not_registered, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED"},
      {Status::not_supported, "CUDA_ERROR_NOT_SUPPORTED"},
      {Status::unknown, "CUDA_ERROR_UNKNOWN"},
      {static_cast<Status>(12345), "CUDA error 12345"},
  };
  for (const auto& [status, name] : names) CHECK_EQ(driver->status_name(status), name);
}

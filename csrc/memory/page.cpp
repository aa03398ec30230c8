#include <utility>

#include "memory/memory.h"

namespace gpupool {

Page::Page(DriverPtr driver, std::size_t bytes) : driver_(std::move(driver)), bytes_(bytes) {}

Page::~Page() {
  if (handle_ != 0) static_cast<void>(driver_->page_release(handle_));
}

// In both, the owner exists before there is a handle that could be lost.
PagePtr Page::create(const DriverPtr& driver, std::size_t bytes) {
  const std::shared_ptr<Page> page(new Page(driver, bytes));
  GPUPOOL_CALL(driver, page_create, &page->handle_, bytes);
  return page;
}

PagePtr Page::import(const DriverPtr& driver, int fd, std::size_t bytes) {
  const std::shared_ptr<Page> page(new Page(driver, bytes));
  GPUPOOL_CALL(driver, page_import, &page->handle_, fd);
  return page;
}

int Page::export_fd() const {
  int fd = -1;
  GPUPOOL_CALL(driver_, page_export, &fd, handle_);
  return fd;
}

}  // namespace gpupool

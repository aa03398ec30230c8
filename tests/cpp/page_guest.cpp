// Another process for no_context_test: takes in the page behind the descriptor that it has
// inherited. page_guest hand_on|write|read DESCRIPTOR
#include <cstdio>
#include <cstdlib>

#include "bench.h"
#include "primary_context.h"

using namespace gpupool;

namespace {

void hand_on(int fd) {
  const DriverPtr driver = open_test_driver();
  PageHandle page = 0, same = 0;
  int own = -1;
  CHECK_OK(driver->page_import(&page, fd));
  CHECK_OK(driver->page_export(&own, page));
  CHECK_OK(driver->page_release(page));
  CHECK_OK(driver->page_import(&same, own));
  CHECK_OK(driver->page_release(same));
  CHECK(!has_primary_context());
}

void use(int fd, bool writes) {
  Bench bench;
  PageHandle page = 0;
  DevicePtr base = 0;
  CHECK_OK(bench->page_import(&page, fd));
  CHECK_OK(bench->address_reserve(&base, page_bytes));
  CHECK_OK(bench->map(base, page_bytes, page));
  CHECK_OK(bench->set_access(base, page_bytes));
  if (writes) bench.write(base, pattern(31, page_bytes));
  CHECK(bench.read(base, page_bytes) == pattern(31, page_bytes));
  CHECK_OK(bench->unmap(base, page_bytes));
  CHECK_OK(bench->address_free(base, page_bytes));
  CHECK_OK(bench->page_release(page));
}

}  // namespace

int main(int count, char** arguments) {
  try {
    CHECK_EQ(count, 3);
    const std::string role = arguments[1];
    const int fd = std::atoi(arguments[2]);
    CHECK(role == "hand_on" || role == "write" || role == "read");
    if (role == "hand_on") {
      hand_on(fd);
    } else {
      use(fd, role == "write");
    }
    return 0;
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}

// Physical pages: handles, poison, life beyond the handle, and travel between processes.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"

using namespace gpupool;

TEST(a_page_has_a_size_in_whole_granules) {
  Bench bench;
  std::size_t granularity = 0;
  CHECK_OK(bench->page_granularity(&granularity));
  PageHandle page = 7;
  CHECK_EQ(bench->page_create(&page, 0), Status::invalid_value);
  CHECK_EQ(bench->page_create(&page, granularity / 2), Status::invalid_value);
  CHECK_EQ(bench->page_create(&page, granularity + 1), Status::invalid_value);
  CHECK_EQ(page, 7);
}

TEST(a_page_larger_than_memory_is_out_of_memory) {
  Bench bench;
  std::size_t free_bytes = 0, total_bytes = 0;
  CHECK_OK(bench->memory_info(&free_bytes, &total_bytes));
  CHECK(free_bytes <= total_bytes);
  PageHandle page = 0;
  CHECK_EQ(bench->page_create(&page, std::size_t{1} << 50), Status::out_of_memory);
  CHECK_OK(bench->page_create(&page, page_bytes));
}

TEST(fresh_pages_are_poisoned) {
  Bench bench;
  CHECK(all_are(bench.read(bench.mapped(2), 2 * page_bytes), 0xA5));
}

TEST(unknown_handles_are_refused) {
  Bench bench;
  PageHandle page = 0;
  CHECK_OK(bench->page_create(&page, page_bytes));
  CHECK_OK(bench->page_release(page));
  CHECK_EQ(bench->page_release(page), Status::invalid_value);
  CHECK_EQ(bench->page_release(0), Status::invalid_value);
  int fd = -7;
  CHECK_EQ(bench->page_export(&fd, page), Status::invalid_value);
  CHECK_EQ(fd, -7);
  DevicePtr base = 0;
  CHECK_OK(bench->address_reserve(&base, page_bytes));
  CHECK_EQ(bench->map(base, page_bytes, page), Status::invalid_value);
}

TEST(a_page_outlives_its_handle_while_mapped) {
  Bench bench;
  std::vector<PageHandle> pages;
  const DevicePtr base = bench.mapped(1, &pages);
  bench.write(base, pattern(3, page_bytes));
  CHECK_OK(bench->page_release(pages[0]));
  CHECK(bench.read(base, page_bytes) == pattern(3, page_bytes));
  CHECK_OK(bench->unmap(base, page_bytes));
}

TEST(an_exported_page_is_the_same_memory_elsewhere) {
  Bench here, there;  // two drivers know nothing of each other, like two processes
  std::vector<PageHandle> pages;
  const DevicePtr base = here.mapped(1, &pages);
  here.write(base, pattern(4, page_bytes));
  int fd = -1;
  CHECK_OK(here->page_export(&fd, pages[0]));
  CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
  PageHandle imported = 0;
  CHECK_OK(there->page_import(&imported, fd));
  CHECK(fcntl(fd, F_GETFD) >= 0);  // still the caller's
  CHECK_EQ(close(fd), 0);
  DevicePtr other = 0;
  CHECK_OK(there->address_reserve(&other, page_bytes));
  CHECK_OK(there->map(other, page_bytes, imported));
  CHECK_OK(there->set_access(other, page_bytes));
  CHECK(there.read(other, page_bytes) == pattern(4, page_bytes));
  there.write(other, pattern(5, page_bytes));
  CHECK(here.read(base, page_bytes) == pattern(5, page_bytes));
  CHECK_OK(here->unmap(base, page_bytes));
  CHECK_OK(here->page_release(pages[0]));
  CHECK(there.read(other, page_bytes) == pattern(5, page_bytes));  // it lives on where it is held
}

TEST(only_pages_are_imported) {
  Bench bench;
  PageHandle page = 7;
  CHECK_EQ(bench->page_import(&page, -1), Status::invalid_value);
  int pipes[2];
  CHECK_EQ(pipe(pipes), 0);
  CHECK_EQ(bench->page_import(&page, pipes[0]), Status::invalid_value);
  close(pipes[0]);
  close(pipes[1]);
  const int odd = memfd_create("odd", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  CHECK_EQ(ftruncate(odd, 4096), 0);
  CHECK_EQ(bench->page_import(&page, odd), Status::invalid_value);
  close(odd);
  CHECK_EQ(page, 7);
}

TEST(nobody_can_shrink_a_page_under_another_process) {
  Bench bench;
  PageHandle page = 0;
  int fd = -1;
  CHECK_OK(bench->page_create(&page, page_bytes));
  CHECK_OK(bench->page_export(&fd, page));
  CHECK_EQ(ftruncate(fd, 0), -1);
  close(fd);
}

TEST(a_shrinkable_file_is_not_taken_for_a_page) {
  Bench bench;
  PageHandle page = 0;
  const int fd = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  CHECK_EQ(ftruncate(fd, page_bytes), 0);
  CHECK_EQ(bench->page_import(&page, fd), Status::invalid_value);
  close(fd);
}

// Physical pages: handles, life beyond the handle, and travel between processes.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "real_gpu.h"

using namespace gpupool;

// Of the whole suite, in all its files.
static const check::AtLeast at_least(100);

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

// To cuda.h the use of a handle that is none is undefined (cuMemRelease,
// cuMemExportToShareableHandle).
TEST(handles_that_are_none_are_refused_where_that_may_be_asked) {
  if (left_out_on_a_gpu(
          "releasing, exporting and mapping no handle, which cuda.h leaves undefined")) {
    return;
  }
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
  for (const PageHandle none : {page, PageHandle{4711}, PageHandle{0}}) {
    CHECK_EQ(bench->map(base, page_bytes, none), Status::invalid_value);
  }
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

TEST(a_granule_is_a_power_of_two) {
  Bench bench;
  std::size_t bytes = 0;
  CHECK_OK(bench->page_granularity(&bytes));
  CHECK(bytes >= 4096);
  CHECK_EQ(bytes & (bytes - 1), 0);
  CHECK_EQ(page_bytes % bytes, 0);
}

TEST(every_handle_is_its_own) {
  Bench bench;
  PageHandle one = 0, two = 0;
  CHECK_OK(bench->page_create(&one, page_bytes));
  CHECK_OK(bench->page_create(&two, page_bytes));
  CHECK(one != 0);
  CHECK(two != 0);
  CHECK(one != two);
  CHECK_OK(bench->page_release(one));
  int fd = -1;
  CHECK_OK(bench->page_export(&fd, two));
  close(fd);
  CHECK_OK(bench->page_release(two));
}

TEST(every_export_is_a_descriptor_of_its_own) {
  Bench bench;
  PageHandle page = 0;
  CHECK_OK(bench->page_create(&page, page_bytes));
  int one = -1, two = -1;
  CHECK_OK(bench->page_export(&one, page));
  CHECK_OK(bench->page_export(&two, page));
  CHECK(one != two);
  CHECK_EQ(close(one), 0);
  PageHandle imported = 0;
  CHECK_OK(bench->page_import(&imported, two));
  CHECK_EQ(close(two), 0);
  CHECK_OK(bench->page_release(imported));
  CHECK_OK(bench->page_release(page));
}

TEST(what_is_no_page_is_not_imported) {
  Bench bench;
  PageHandle page = 7;
  CHECK(bench->page_import(&page, -1) != Status::success);
  int pipes[2];
  CHECK_EQ(pipe(pipes), 0);
  CHECK(bench->page_import(&page, pipes[0]) != Status::success);
  close(pipes[0]);
  close(pipes[1]);
  CHECK_EQ(page, 7);
}

TEST(memory_info_is_about_one_device) {
  Bench bench;
  std::size_t free_bytes = 0, total_bytes = 0;
  CHECK_OK(bench->memory_info(&free_bytes, &total_bytes));
  CHECK(total_bytes >= page_bytes);
  CHECK(free_bytes <= total_bytes);
}

TEST(the_clock_never_goes_back) {
  Bench bench;
  std::int64_t last = bench->now_ns();
  for (int i = 0; i < 1000; ++i) {
    const std::int64_t now = bench->now_ns();
    CHECK(now >= last);
    last = now;
  }
}

TEST(a_status_has_a_name) {
  Bench bench;
  CHECK_EQ(bench->status_name(Status::success), std::string("CUDA_SUCCESS"));
  CHECK_EQ(bench->status_name(Status::out_of_memory), std::string("CUDA_ERROR_OUT_OF_MEMORY"));
  CHECK_EQ(bench->status_name(Status::invalid_value), std::string("CUDA_ERROR_INVALID_VALUE"));
  CHECK_EQ(bench->status_name(Status::not_ready), std::string("CUDA_ERROR_NOT_READY"));
  CHECK_EQ(bench->status_name(Status::illegal_address), std::string("CUDA_ERROR_ILLEGAL_ADDRESS"));
}

TEST(a_forked_child_is_refused) {
  Bench bench;
  PageHandle page = 0;
  CHECK_OK(bench->page_create(&page, page_bytes));
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    const auto refused = [](Status status) { return status == Status::not_initialized; };
    std::size_t bytes = 0;
    PageHandle other = 0;
    DevicePtr base = 0;
    StreamHandle stream = nullptr;
    const bool right =
        refused(bench->page_granularity(&bytes)) &&
        refused(bench->page_create(&other, page_bytes)) && refused(bench->page_release(page)) &&
        refused(bench->address_reserve(&base, page_bytes)) &&
        refused(bench->stream_create(&stream)) && refused(bench->context_synchronize()) &&
        refused(bench->stream_synchronize(bench.stream()));
    _exit(right ? 0 : 1);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  CHECK_OK(bench->page_release(page));
}

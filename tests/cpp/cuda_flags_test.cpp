// The CUDA driver: what it asks the library for beside what the seam says, and what it leaves
// alone.
#include <fcntl.h>

#include "cuda_bench.h"

using namespace gpupool;

namespace {

constexpr auto capture_unsupported = static_cast<Status>(900);

// The mode of this thread, which stays what it is.
int capture_mode() {
  const auto exchange = library_call<int (*)(int*)>("cuThreadExchangeStreamCaptureMode");
  int mode = cuda::capture_mode_relaxed;
  CHECK_EQ(exchange(&mode), 0);
  int put_back = mode;
  CHECK_EQ(exchange(&put_back), 0);
  return mode;
}

}  // namespace

TEST(flags_are_those_that_are_meant) {
  const DriverPtr driver = open_cuda_driver(0);
  for (const Answer& answer : call_everything(*driver)) CHECK_OK(answer.status);
  CHECK_EQ(control().last_asked("cuStreamCreate"), cuda::stream_non_blocking);
  CHECK_EQ(control().last_asked("cuMemHostRegister"), cuda::host_register_flags);
  CHECK_EQ(control().last_asked("cuEventCreate"),
           cuda::event_disable_timing | cuda::event_blocking_sync);
  CHECK_EQ(control().last_asked("cuMemAddressReserve"), page_bytes);
}

TEST(a_capture_of_another_thread_goes_on) {
  const DriverPtr driver = open_cuda_driver(0);
  control().begin_capture();
  const auto answers = call_everything(*driver, false);
  CHECK(control().end_capture());
  for (const Answer& answer : answers) CHECK_OK(answer.status);
}

// Whoever has models leave while others capture learns of it.
TEST(the_whole_context_is_not_waited_for_while_a_graph_is_captured) {
  const DriverPtr driver = open_cuda_driver(0);
  control().begin_capture();
  CHECK_EQ(driver->context_synchronize(), capture_unsupported);
  CHECK(!control().end_capture());
  CHECK_OK(driver->context_synchronize());
}

TEST(the_mode_of_the_thread_is_as_it_was) {
  const DriverPtr driver = open_cuda_driver(0);
  CHECK_EQ(capture_mode(), cuda::capture_mode_global);
  for (const Answer& answer : call_everything(*driver)) CHECK_OK(answer.status);
  CHECK_EQ(capture_mode(), cuda::capture_mode_global);
  CHECK(driver->event_destroy(nullptr) != Status::success);  // after a refusal too
  CHECK_EQ(capture_mode(), cuda::capture_mode_global);
}

TEST(an_exported_descriptor_is_closed_where_another_program_is_started) {
  const DriverPtr driver = open_cuda_driver(0);
  PageHandle page = 0;
  int fd = -1;
  CHECK_OK(driver->page_create(&page, page_bytes));
  CHECK_OK(driver->page_export(&fd, page));
  CHECK_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
  close(fd);
  CHECK_OK(driver->page_release(page));
}

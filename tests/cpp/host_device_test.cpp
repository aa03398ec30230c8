// What the host device refuses or shows where cuda.h promises nothing: the strictness that tests of
// everything above the seam rest on.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "two_streams.h"

using namespace gpupool;

namespace {
constexpr Status invalid = Status::invalid_value;
constexpr Status fault = Status::illegal_address;
}  // namespace

TEST(fresh_pages_are_poisoned) {
  Bench bench;
  CHECK(all_are(bench.read(bench.mapped(2), 2 * page_bytes), 0xA5));
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
  // Sealed as a page is, but no multiple of the granularity.
  const int uneven = memfd_create("uneven", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  CHECK_EQ(ftruncate(uneven, page_bytes + 4096), 0);
  CHECK_EQ(fcntl(uneven, F_ADD_SEALS, F_SEAL_SHRINK), 0);
  CHECK_EQ(bench->page_import(&page, uneven), Status::invalid_value);
  close(uneven);
  CHECK_EQ(page, 7);
}

TEST(a_page_larger_than_the_reservation_is_not_mapped) {
  Bench bench;
  PageHandle page = 0;
  DevicePtr base = 0;
  CHECK_OK(bench->page_create(&page, 2 * page_bytes));
  CHECK_OK(bench->address_reserve(&base, page_bytes));
  CHECK_EQ(bench->map(base, 2 * page_bytes, page), Status::invalid_value);
  CHECK_OK(bench->address_free(base, page_bytes));
  CHECK_OK(bench->page_release(page));
}

TEST(copies_need_access) {
  Bench bench;
  DevicePtr base = 0;
  PageHandle page = 0;
  CHECK_OK(bench->address_reserve(&base, 2 * page_bytes));
  CHECK_OK(bench->page_create(&page, page_bytes));
  const auto refused = [&](DevicePtr address, std::size_t bytes) {
    CHECK_EQ(bench->copy_to_device(address, bench.staging(), bytes, bench.stream()), invalid);
    CHECK_EQ(bench->copy_to_host(bench.staging(), address, bytes, bench.stream()), invalid);
    CHECK_EQ(bench->fill(address, 1, bytes, bench.stream()), invalid);
  };
  refused(base, 16);  // reserved only
  CHECK_OK(bench->map(base, page_bytes, page));
  refused(base, 16);  // mapped only
  CHECK_OK(bench->set_access(base, page_bytes));
  refused(base + page_bytes, 16);      // behind its end
  refused(base + page_bytes - 8, 16);  // across its end
  refused(base, page_bytes + 1);
  refused(base, ~std::size_t{0});
  refused(base - 8, 16);
  refused(0, 16);
  refused(base, 0);
  CHECK(all_are(bench.read(base, page_bytes), 0xA5));  // none of them did anything
}

TEST(copies_need_registered_host_memory) {
  Bench bench;
  const DevicePtr base = bench.mapped(1);
  Bytes memory(8192);
  const auto copy = [&](std::size_t offset, std::size_t bytes) {
    const Status to = bench->copy_to_device(base, memory.data() + offset, bytes, bench.stream());
    const Status from = bench->copy_to_host(memory.data() + offset, base, bytes, bench.stream());
    CHECK_EQ(to, from);
    CHECK_OK(bench->stream_synchronize(bench.stream()));
    return to;
  };
  CHECK_EQ(copy(0, 16), invalid);
  CHECK_OK(bench->host_register(memory.data(), 4096));
  CHECK_OK(copy(0, 4096));
  CHECK_EQ(copy(4000, 97), invalid);
  CHECK_EQ(copy(4096, 1), invalid);
  CHECK_OK(bench->host_unregister(memory.data()));
  CHECK_EQ(copy(0, 16), invalid);
}

TEST(work_on_an_unknown_stream_is_refused) {
  Bench bench;
  const DevicePtr base = bench.mapped(1);
  StreamHandle gone = nullptr;
  CHECK_OK(bench->stream_create(&gone));
  CHECK_OK(bench->stream_destroy(gone));
  CHECK_EQ(bench->fill(base, 0, 16, gone), Status::invalid_handle);
  CHECK_EQ(bench->copy_to_host(bench.staging(), base, 16, gone), Status::invalid_handle);
  CHECK_EQ(bench->copy_to_device(base, bench.staging(), 16, gone), Status::invalid_handle);
}

TEST(host_memory_is_registered_once) {
  Bench bench;
  Bytes memory(8192);
  constexpr Status again = Status::host_memory_already_registered;
  CHECK_EQ(bench->host_register(nullptr, 4096), invalid);
  CHECK_EQ(bench->host_register(memory.data(), 0), invalid);
  CHECK_EQ(bench->host_register(memory.data(), ~std::size_t{0}), invalid);
  CHECK_OK(bench->host_register(memory.data() + 2048, 4096));
  CHECK_EQ(bench->host_register(memory.data() + 2048, 4096), again);
  CHECK_EQ(bench->host_register(memory.data(), 2049), again);
  CHECK_EQ(bench->host_register(memory.data() + 6143, 1), again);
  CHECK_EQ(bench->host_register(memory.data(), 8192), again);
  CHECK_OK(bench->host_register(memory.data(), 2048));         // just before
  CHECK_OK(bench->host_register(memory.data() + 6144, 2048));  // just behind
  constexpr Status unknown = Status::host_memory_not_registered;
  CHECK_EQ(bench->host_unregister(memory.data() + 1), unknown);
  CHECK_OK(bench->host_unregister(memory.data()));
  CHECK_EQ(bench->host_unregister(memory.data()), unknown);
}

TEST(unknown_streams_and_events_are_refused) {
  Two two;
  StreamHandle stream = nullptr;
  EventHandle event = nullptr;
  CHECK_OK(two->stream_create(&stream));
  CHECK_OK(two->stream_destroy(stream));
  CHECK_OK(two->event_create(&event));
  CHECK_OK(two->event_destroy(event));
  constexpr Status unknown = Status::invalid_handle;
  CHECK_EQ(two->stream_destroy(stream), unknown);
  CHECK_EQ(two->stream_synchronize(stream), unknown);
  CHECK_EQ(two->event_record(two.event, stream), unknown);
  CHECK_EQ(two->stream_wait_event(stream, two.event), unknown);
  CHECK_EQ(two->event_destroy(event), unknown);
  CHECK_EQ(two->event_record(event, two.stream()), unknown);
  CHECK_EQ(two->event_query(event), unknown);
  CHECK_EQ(two->event_synchronize(event), unknown);
  CHECK_EQ(two->stream_wait_event(two.stream(), event), unknown);
  CHECK_EQ(two->stream_synchronize(nullptr), unknown);
  CHECK_OK(two->event_query(two.event));  // a refused record leaves the event as it was
}

TEST(a_range_mapped_anew_is_no_excuse_for_lost_access) {
  Two two;
  std::vector<PageHandle> pages;
  const DevicePtr victim = two.mapped(1, &pages);
  {
    const auto busy = two.busy(two.other);
    CHECK_OK(two->fill(victim, 1, page_bytes, two.other));
    CHECK_OK(two->unmap(victim, page_bytes));
    CHECK_OK(two->map(victim, page_bytes, pages[0]));
  }
  CHECK_EQ(two->stream_synchronize(two.other), fault);
}

TEST(host_memory_unregistered_under_a_copy_is_a_sticky_fault) {
  for (const bool to_device : {false, true}) {
    Two two;
    Bytes memory(4096);
    CHECK_OK(two->host_register(memory.data(), memory.size()));
    {
      const auto busy = two.busy(two.other);
      CHECK_OK(to_device ? two->copy_to_device(two.base, memory.data(), 4096, two.other)
                         : two->copy_to_host(memory.data(), two.base, 4096, two.other));
      CHECK_OK(two->host_unregister(memory.data()));
    }
    CHECK_EQ(two->stream_synchronize(two.other), fault);
    CHECK_EQ(memory[0], 0);
  }
}

TEST(a_kernel_touches_only_what_is_mapped) {
  Two two;
  const auto device = host_device(two.driver());
  int ran = 0;
  CHECK_OK(device->launch(two.other, {{two.base, 4096}}, [&] { ++ran; }));
  CHECK_OK(two->stream_synchronize(two.other));
  CHECK_EQ(ran, 1);
  CHECK_OK(device->launch(two.other, {{two.base, 4096}, {two.base + 9 * page_bytes, 1}},
                          [&] { ++ran; }));
  CHECK_EQ(two->stream_synchronize(two.other), fault);
  CHECK_EQ(ran, 1);
}

TEST(a_synchronised_stream_has_nothing_running) {
  const auto device = host_device(open_test_driver());
  StreamHandle stream = nullptr;
  CHECK_OK(device->stream_create(&stream));
  for (int round = 0; round < 20; ++round) {
    std::atomic<bool> running{false}, done{false};
    CHECK_OK(device->launch(stream, {}, [&] {
      running = true;
      for (int i = 0; i < 2000; ++i) std::this_thread::yield();
      done = true;
    }));
    // With threads, it is wanted off the queue and not done when it is waited for.
    while (test_driver_name() == "host/threads" && !running) std::this_thread::yield();
    CHECK_OK(device->stream_synchronize(stream));
    CHECK(done);
  }
  CHECK_OK(device->stream_destroy(stream));
}

TEST(a_held_stream_has_work_pending) {
  Two two;
  const auto device = host_device(two.driver());
  {
    const auto busy = two.busy(two.other);
    CHECK_OK(two->fill(two.base, 1, 16, two.other));
    CHECK(device->pending() >= 1);
  }
  CHECK_OK(two->stream_synchronize(two.other));
  CHECK_EQ(device->pending(), 0);
}

TEST(the_clock_can_be_put_forward) {
  Bench bench;
  const std::int64_t before = bench->now_ns();
  host_device(bench.driver())->advance_ns(5'000'000'000'000);
  CHECK(bench->now_ns() >= before + 5'000'000'000'000);
}

TEST(a_granule_is_what_the_options_say) {
  const Bench small(open_stepped(1, 4096));
  std::size_t bytes = 0;
  CHECK_OK(small->page_granularity(&bytes));
  CHECK_EQ(bytes, 4096);
  DevicePtr base = 0;
  CHECK_OK(small->address_reserve(&base, 4096));
  CHECK_OK(small->address_free(base, 4096));
  CHECK_THROWS(UsageError, open_stepped(1, 0));
  CHECK_THROWS(UsageError, open_stepped(1, 2048));
  CHECK_THROWS(UsageError, open_stepped(1, 12288));
}

// There when coverage is counted.
extern "C" __attribute__((weak)) void __gcov_dump();

// Whatever it is asked for.
template <typename... A>
static bool refuses(Driver& driver, Status (Driver::*call)(A...) noexcept) {
  return (driver.*call)(A{}...) == Status::not_initialized;
}

TEST(a_forked_child_can_let_its_devices_go_and_nothing_else) {
  auto two = std::make_unique<Two>();
  const auto busy = two->busy(two->other);
  CHECK_OK((*two)->fill(two->base, 1, 16, two->other));
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // what ran the streams stayed behind: a wait for it would be for ever
    bool right = true;
#define REFUSED(name, params, args, needs_context) \
  right = refuses(*two->driver(), &Driver::name) && right;
    GPUPOOL_DRIVER_CALLS(REFUSED)
#undef REFUSED
    two.reset();
    if (__gcov_dump != nullptr) __gcov_dump();  // _exit() would not count what ran here
    _exit(right ? 0 : 1);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
}

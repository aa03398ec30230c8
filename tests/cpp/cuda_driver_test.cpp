// The CUDA driver: when it makes a context, whose context is current afterwards, what it asks of
// the library, and what it says of an error.
#include <atomic>
#include <thread>

#include "cuda_bench.h"
#include "memory/dlpack.h"

using namespace gpupool;
using standin::Held;

static const KeepsNoContext keeps_no_context;

namespace {

// Nothing of an earlier test is left, and nothing of this one will be.
struct Clean {
  Clean() { CHECK(control().held() == Held{}); }
  void check() const {
    CHECK(control().held() == Held{});
    CHECK_EQ(control().left_behind(), left_behind);
    CHECK_EQ(current_context(), static_cast<void*>(nullptr));
  }
  std::uint64_t left_behind = control().left_behind();
};

std::uint64_t calls(const char* name) { return control().calls(name); }

struct Foreign {
  Foreign() : context(control().make_context()) { CHECK_EQ(make_current(context), 0); }
  ~Foreign() {
    make_current(nullptr);
    control().destroy_context(context);
  }
  void* context;
};

}  // namespace

TEST(opening_makes_no_context_nor_do_calls_on_pages) {
  const Clean clean;
  {
    const DriverPtr driver = open_cuda_driver(0);
    CHECK_EQ(driver->kind(), DeviceKind::cuda);
    CHECK_EQ(driver->ordinal(), 0);
    std::size_t bytes = 0;
    CHECK_OK(driver->page_granularity(&bytes));
    CHECK_EQ(bytes, page_bytes);
    PageHandle page = 0, same = 0;
    int fd = -1;
    CHECK_OK(driver->page_create(&page, page_bytes));
    CHECK_OK(driver->page_export(&fd, page));
    CHECK_OK(driver->page_import(&same, fd));
    close(fd);
    CHECK_EQ(control().held().pages, 2);
    CHECK_OK(driver->page_release(same));
    CHECK_OK(driver->page_release(page));
    CHECK(driver->now_ns() <= driver->now_ns());
    CHECK_EQ(driver->status_name(Status::success), "CUDA_SUCCESS");
  }
  CHECK_EQ(control().contexts_made(), 0);  // ever: this test is the first
  CHECK_EQ(calls("cuCtxGetCurrent"), 0);   // so the library was not even asked for one
  CHECK_EQ(calls("cuDevicePrimaryCtxRelease"), 0);
  clean.check();
}

TEST(what_the_table_says_needs_a_context_is_what_makes_one) {
#define MAKES_ONE(name, params, args, needs_context) needed.emplace_back(#name, needs_context);
  std::vector<std::pair<std::string, bool>> needed;
  GPUPOOL_DRIVER_CALLS(MAKES_ONE)
#undef MAKES_ONE
  // Each on a driver of its own with nothing valid to work on: the context comes first.
  const auto run = [](Driver& driver, const std::string& name) {
    std::size_t bytes = 0;
    std::uint64_t handle = 0;
    StreamHandle stream = nullptr;
    EventHandle event = nullptr;
    int fd = -1;
    if (name == "page_granularity") return driver.page_granularity(&bytes);
    if (name == "memory_info") return driver.memory_info(&bytes, &bytes);
    if (name == "context_synchronize") return driver.context_synchronize();
    if (name == "page_create") return driver.page_create(&handle, 1);
    if (name == "page_release") return driver.page_release(0);
    if (name == "page_export") return driver.page_export(&fd, 0);
    if (name == "page_import") return driver.page_import(&handle, -1);
    if (name == "address_reserve") return driver.address_reserve(&handle, 0);
    if (name == "address_free") return driver.address_free(0, 0);
    if (name == "map") return driver.map(0, 0, 0);
    if (name == "unmap") return driver.unmap(0, 0);
    if (name == "set_access") return driver.set_access(0, 0);
    if (name == "set_read_only") return driver.set_read_only(0, 0);
    if (name == "host_register") return driver.host_register(nullptr, 0);
    if (name == "host_unregister") return driver.host_unregister(nullptr);
    if (name == "stream_create") {
      const Status status = driver.stream_create(&stream);
      static_cast<void>(driver.stream_destroy(stream));
      return status;
    }
    if (name == "stream_destroy") return driver.stream_destroy(stream);
    if (name == "stream_synchronize") return driver.stream_synchronize(stream);
    if (name == "stream_wait_event") return driver.stream_wait_event(stream, event);
    if (name == "event_create") {
      const Status status = driver.event_create(&event);
      static_cast<void>(driver.event_destroy(event));
      return status;
    }
    if (name == "event_destroy") return driver.event_destroy(event);
    if (name == "event_record") return driver.event_record(event, stream);
    if (name == "event_query") return driver.event_query(event);
    if (name == "event_synchronize") return driver.event_synchronize(event);
    if (name == "copy_to_device") return driver.copy_to_device(0, &bytes, 1, stream);
    if (name == "copy_to_host") return driver.copy_to_host(&bytes, 0, 1, stream);
    void* host[] = {&bytes};
    const std::size_t sizes[] = {1};
    if (name == "copy_batch_to_device") {
      return driver.copy_batch_to_device(&handle, host, sizes, 1, stream);
    }
    if (name == "copy_batch_to_host") {
      return driver.copy_batch_to_host(host, &handle, sizes, 1, stream);
    }
    if (name == "fill") return driver.fill(0, 0, 1, stream);
    if (name == "digest") return driver.digest(0, 1, &handle, stream);
    const DeviceRun run{0, 1};
    if (name == "digest_runs") return driver.digest_runs(&run, 1, &handle, stream);
    CHECK_EQ(name, "copy_to_device_digest");
    return driver.copy_to_device_digest(0, &bytes, 1, &handle, stream);
  };
  for (const auto& [name, needs_context] : needed) {
    const Clean clean;
    const std::uint64_t made = control().contexts_made();
    {
      const DriverPtr driver = open_cuda_driver(0);
      CHECK(run(*driver, name) != static_cast<Status>(201));  // no current context
      CHECK_EQ(control().contexts_made() - made, needs_context ? 1 : 0);
    }
    clean.check();
  }
}

TEST(the_primary_context_is_retained_once_and_released_at_the_end) {
  const Clean clean;
  const std::uint64_t retained = calls("cuDevicePrimaryCtxRetain");
  {
    const DriverPtr driver = open_cuda_driver(0);
    for (int round = 0; round < 3; ++round) {
      for (const Answer& answer : call_everything(*driver)) CHECK_OK(answer.status);
    }
    CHECK_EQ(calls("cuDevicePrimaryCtxRetain") - retained, 1);
    CHECK_EQ(control().held().retains, 1);
    CHECK_EQ(current_context(), static_cast<void*>(nullptr));
  }
  clean.check();
}

TEST(what_was_current_is_current_again) {
  const Clean clean;
  {
    const DriverPtr driver = open_cuda_driver(0);
    const Foreign foreign;
    for (const Answer& answer : call_everything(*driver)) {
      CHECK_OK(answer.status);
      CHECK_EQ(current_context(), foreign.context);
    }
    EventHandle event = nullptr;
    CHECK(driver->event_destroy(event) != Status::success);  // a refused call restores it too
    CHECK_EQ(current_context(), foreign.context);
  }
  clean.check();
}

TEST(a_context_that_is_current_already_is_left_alone) {
  const Clean clean;
  {
    const DriverPtr driver = open_cuda_driver(0);
    void* primary = nullptr;
    int device = 0;
    CHECK_EQ(library_call<int (*)(int*, int)>("cuDeviceGet")(&device, 0), 0);
    CHECK_EQ(library_call<int (*)(void**, int)>("cuDevicePrimaryCtxRetain")(&primary, device), 0);
    CHECK_EQ(make_current(primary), 0);  // as torch has it
    const std::uint64_t before = calls("cuCtxSetCurrent");
    for (const Answer& answer : call_everything(*driver)) CHECK_OK(answer.status);
    CHECK_EQ(calls("cuCtxSetCurrent"), before);
    CHECK_EQ(current_context(), primary);
    CHECK_EQ(control().held().contexts, 1);  // the same one
    CHECK_EQ(control().held().retains, 2);
    CHECK_EQ(make_current(nullptr), 0);
    CHECK_EQ(library_call<int (*)(int)>("cuDevicePrimaryCtxRelease")(device), 0);
    for (const Answer& answer : call_everything(*driver)) CHECK_OK(answer.status);
  }
  clean.check();
}

TEST(threads_share_one_context_and_keep_their_own) {
  const Clean clean;
  {
    const DriverPtr driver = open_cuda_driver(0);
    const std::uint64_t retained = calls("cuDevicePrimaryCtxRetain");
    std::atomic<int> wrong{0}, ready{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) {
      threads.emplace_back([&, t] {
        void* own = t % 2 == 0 ? control().make_context() : nullptr;
        wrong += make_current(own) != 0;
        ++ready;
        while (ready < 8) std::this_thread::yield();  // so that all ask for the context at once
        for (int i = 0; i < 50; ++i) {
          EventHandle event = nullptr;
          wrong += driver->event_create(&event) != Status::success;
          wrong += driver->event_query(event) != Status::success;
          wrong += driver->event_destroy(event) != Status::success;
          wrong += current_context() != own;
        }
        make_current(nullptr);
        if (own != nullptr) control().destroy_context(own);
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK_EQ(wrong.load(), 0);
    CHECK_EQ(calls("cuDevicePrimaryCtxRetain") - retained, 1);
  }
  clean.check();
}

TEST(a_call_that_succeeded_is_not_undone_by_a_context_that_is_gone) {
  const Clean clean;
  {
    const DriverPtr driver = open_cuda_driver(0);
    void* gone = control().make_context();
    CHECK_EQ(make_current(gone), 0);
    control().destroy_context(gone);  // by its owner, while it is current here
    EventHandle event = nullptr;
    CHECK_OK(driver->event_create(&event));
    CHECK(event != nullptr);
    CHECK_OK(driver->event_destroy(event));
    CHECK_EQ(make_current(nullptr), 0);
  }
  clean.check();
}

TEST(drivers_of_one_device_share_its_context_and_two_devices_have_two) {
  const Clean clean;
  {
    const DriverPtr first = open_cuda_driver(0), second = open_cuda_driver(0),
                    other = open_cuda_driver(1);
    CHECK_EQ(other->ordinal(), 1);
    CHECK_EQ(dlpack::device_of(*other).type, 2);  // kDLCUDA
    CHECK_EQ(dlpack::device_of(*other).id, 1);
    for (const Answer& answer : call_everything(*first)) CHECK_OK(answer.status);
    for (const Answer& answer : call_everything(*second)) CHECK_OK(answer.status);
    CHECK_EQ(control().held().contexts, 1);
    for (const Answer& answer : call_everything(*other)) CHECK_OK(answer.status);
    CHECK_EQ(control().held().contexts, 2);
    CHECK_EQ(control().held().retains, 3);
  }
  clean.check();
}

TEST(a_device_that_is_not_there_is_refused) {
  const Clean clean;
  for (const int ordinal : {-1, standin::devices}) {
    try {
      static_cast<void>(open_cuda_driver(ordinal));
      check::fail(__FILE__, __LINE__, "nothing was thrown");
    } catch (const DriverError& error) {
      CHECK_EQ(std::string(error.what()), "cuDeviceGet failed: CUDA_ERROR_INVALID_DEVICE");
    }
  }
  clean.check();
}

TEST(statuses_have_the_names_of_the_library) {
  const DriverPtr driver = open_cuda_driver(0);
  CHECK_EQ(driver->status_name(Status::out_of_memory), "CUDA_ERROR_OUT_OF_MEMORY");
  CHECK_EQ(driver->status_name(static_cast<Status>(201)), "CUDA_ERROR_INVALID_CONTEXT");
  CHECK_EQ(driver->status_name(static_cast<Status>(12345)), "CUDA error 12345");
  control().fail("cuGetErrorName", 1, 1, false);  // then gpupool's own list serves
  CHECK_EQ(driver->status_name(Status::not_ready), "CUDA_ERROR_NOT_READY");
  CHECK_EQ(control().injected(), 1);
}

TEST(a_fault_of_the_device_stays_until_its_context_ends) {
  const Clean clean;
  {
    Bench bench(open_cuda_driver(0));
    const DevicePtr slow = bench.mapped(32), victim = bench.mapped(1);
    for (int i = 0; i < 8; ++i) CHECK_OK(bench->fill(slow, 1, 32 * page_bytes, bench.stream()));
    CHECK_OK(bench->fill(victim, 1, page_bytes, bench.stream()));
    CHECK_OK(bench->unmap(victim, page_bytes));
    CHECK_EQ(bench->stream_synchronize(bench.stream()), Status::illegal_address);
    EventHandle event = nullptr;
    CHECK_EQ(bench->event_create(&event), Status::illegal_address);
  }
  CHECK(control().held() == Held{});
  const DriverPtr driver = open_cuda_driver(0);
  for (const Answer& answer : call_everything(*driver)) CHECK_OK(answer.status);
}

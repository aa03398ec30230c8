// Every call of the system that the host driver and pinned memory make fails: the status that
// answers for its errno, and nothing changed or kept.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <thread>

#include "bench.h"
#include "ledger.h"
#include "refuse.h"
#include "slab_bench.h"

using namespace gpupool;
using refuse::Call;

namespace {

// The lowest descriptor that is free: the same before and after if none was left open.
int next_descriptor() {
  const int fd = dup(0);
  close(fd);
  return fd;
}

template <typename Attempt>
void refused(Call call, int nth, Attempt attempt) {
  for (const int error : {ENOMEM, ENFILE, EMFILE, ENOSPC, EINVAL}) {
    const int before = next_descriptor();
    refuse::nth(call, nth, error);
    const Status status = attempt();
    CHECK_EQ(refuse::done(), 1);
    CHECK_EQ(status, error == EINVAL ? Status::unknown : Status::out_of_memory);
    CHECK_EQ(next_descriptor(), before);
  }
}

}  // namespace

TEST(a_page_that_cannot_be_made_leaves_nothing) {
  const DriverPtr driver = open_host_driver();
  PageHandle page = 0;
  const auto create = [&] { return driver->page_create(&page, page_bytes); };
  for (const Call call : {Call::memfd_create, Call::ftruncate, Call::mmap}) {
    refused(call, 1, create);
    CHECK_EQ(page, 0);
  }
  for (const Call call : {Call::fallocate, Call::mmap}) {
    refused(call, 2, create);
    CHECK_EQ(page, 0);
  }
  // The first one asks for huge pages, and a page does without them.
  refuse::nth(Call::fallocate, 1, ENOSPC);
  CHECK_OK(create());
  CHECK_EQ(refuse::done(), 1);
  CHECK_OK(driver->page_release(page));
}

TEST(a_page_whose_size_cannot_be_seen_is_not_imported) {
  const DriverPtr driver = open_host_driver();
  PageHandle page = 0, same = 0;
  int fd = -1;
  CHECK_OK(driver->page_create(&page, page_bytes));
  CHECK_OK(driver->page_export(&fd, page));
  refuse::nth(Call::fstat, 1, EIO);
  CHECK_EQ(driver->page_import(&same, fd), Status::invalid_value);
  CHECK_EQ(refuse::done(), 1);
  CHECK_OK(driver->page_import(&same, fd));
  close(fd);
  CHECK_OK(driver->page_release(same));
  CHECK_OK(driver->page_release(page));
}

TEST(addresses_that_cannot_be_had_mapped_or_opened_stay_as_they_were) {
  const DriverPtr driver = open_host_driver();
  PageHandle page = 0;
  DevicePtr base = 0;
  CHECK_OK(driver->page_create(&page, page_bytes));
  refused(Call::mmap, 1, [&] { return driver->address_reserve(&base, page_bytes); });
  CHECK_EQ(base, 0);
  CHECK_OK(driver->address_reserve(&base, page_bytes));

  refused(Call::mmap, 1, [&] { return driver->map(base, page_bytes, page); });
  CHECK_EQ(driver->unmap(base, page_bytes), Status::invalid_value);  // nothing is mapped
  CHECK_OK(driver->map(base, page_bytes, page));

  const HostMemory staging(driver, -1, page_bytes);
  StreamHandle stream = nullptr;
  CHECK_OK(driver->stream_create(&stream));
  const auto copy = [&] {
    return driver->copy_to_device(base, staging.data(), page_bytes, stream);
  };
  refused(Call::mprotect, 1, [&] { return driver->set_access(base, page_bytes); });
  CHECK_EQ(copy(), Status::invalid_value);  // no access
  CHECK_OK(driver->set_access(base, page_bytes));

  refused(Call::mmap, 1, [&] { return driver->unmap(base, page_bytes); });
  CHECK_OK(copy());  // still mapped, with access
  CHECK_OK(driver->stream_synchronize(stream));
  CHECK_OK(driver->stream_destroy(stream));
  CHECK_OK(driver->unmap(base, page_bytes));
  CHECK_OK(driver->address_free(base, page_bytes));
  CHECK_OK(driver->page_release(page));
}

TEST(a_page_released_while_it_is_being_mapped_is_the_one_that_is_mapped) {
  Bench bench(open_host_driver());
  PageHandle page = 0, next = 0;
  DevicePtr base = 0;
  CHECK_OK(bench->page_create(&page, page_bytes));
  CHECK_OK(bench->address_reserve(&base, 2 * page_bytes));
  CHECK_OK(bench->map(base, page_bytes, page));
  CHECK_OK(bench->set_access(base, page_bytes));
  bench.write(base, pattern(1, 4096));
  // The next page would have the descriptor of the released one, were that closed.
  refuse::before_mmap([&] {
    CHECK_OK(bench->page_release(page));
    CHECK_OK(bench->page_create(&next, page_bytes));
  });
  CHECK_OK(bench->map(base + page_bytes, page_bytes, page));
  CHECK(next != 0);
  CHECK_OK(bench->set_access(base + page_bytes, page_bytes));
  CHECK(bench.read(base + page_bytes, 4096) == pattern(1, 4096));
  CHECK_OK(bench->unmap(base, 2 * page_bytes));
  CHECK_OK(bench->address_free(base, 2 * page_bytes));
  CHECK_OK(bench->page_release(next));
}

TEST(pinned_memory_that_cannot_be_had_leaves_nothing) {
  const auto ledger = std::make_shared<Ledger>(open_host_driver());
  for (const Call call : {Call::memfd_create, Call::ftruncate, Call::mmap}) {
    const int before = next_descriptor();
    refuse::nth(call, 1, ENOMEM);
    try {
      const HostMemory memory(ledger, -1, page_bytes);
      check::fail(__FILE__, __LINE__, "nothing was thrown");
    } catch (const std::system_error& error) {
      CHECK_EQ(error.code().value(), ENOMEM);
    }
    CHECK_EQ(refuse::done(), 1);
    CHECK_EQ(next_descriptor(), before);
    CHECK(ledger->held() == Holdings{});
  }
  refuse::nth(Call::fstat, 1, EIO);
  CHECK_THROWS(UsageError, HostMemory(ledger, -1, page_bytes));
  CHECK_EQ(refuse::done(), 1);
  CHECK(ledger->held() == Holdings{});
}

TEST(a_slab_that_cannot_be_taken_from_its_thread_stays_there) {
  const Scene scene;
  const BlockHandle mine = scene.slabs->allocate(0);
  // Another thread's free is not by its owner: the slab would have to be taken, each time anew.
  for (int attempt = 0; attempt < 2; ++attempt) {
    bool failed = false;
    std::thread other([&] {
      refuse::nth(Call::membarrier, 1, EPERM);
      try {
        scene.slabs->free(mine);
      } catch (const std::system_error& error) {
        failed = error.code().value() == EPERM;
      }
    });
    other.join();
    CHECK_EQ(refuse::done(), 1);
    CHECK(failed);
  }
  CHECK_EQ(scene.slabs->statistics().slabs_taken, 0);
  CHECK_EQ(scene.slabs->statistics().shapes[0].blocks_live, 1);
  scene.slabs->free(mine);
  CHECK_THROWS(StaleBlock, scene.slabs->free(mine));
  CHECK_EQ(scene.slabs->statistics().shapes[0].blocks_live, 0);
}

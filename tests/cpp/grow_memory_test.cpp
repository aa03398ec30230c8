// Host memory that grows and has no memory for its own books: the file it was given is let go.
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"
#include "failing_new.h"
#include "mapped_files.h"

using namespace gpupool;

TEST(a_growth_without_memory_keeps_nothing_of_its_file) {
  constexpr std::size_t more = 4 * mib;  // so that it asks how much memory there is
  for (std::uint64_t nth = 1;; ++nth) {
    HostMemory memory(open_test_driver(), -1, 4096, 2 * more);
    const int fd = memfd_create("given-to-grow", MFD_CLOEXEC);
    CHECK_EQ(ftruncate(fd, more), 0);
    fail_allocations(nth, false);
    bool failed = false;
    try {
      memory.grow(fd, more);
    } catch (const std::bad_alloc&) {
      failed = true;
    } catch (const DriverError&) {
      failed = true;  // the host driver found none either
    }
    bad_alloc_at = 0;
    close(fd);
    CHECK_EQ(memory.bytes(), failed ? 4096 : more);
    CHECK_EQ(memfds_mapped("given-to-grow"), failed ? 0 : 1);
    if (bad_allocs == 0) break;
  }
}

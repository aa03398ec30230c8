// Pinned host memory over a memfd: its limits, and that it goes without a trace.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <system_error>

#include "bench.h"
#include "driver/fault.h"

using namespace gpupool;

namespace {

struct Fd {
  explicit Fd(std::size_t bytes) : fd(memfd_create("test", MFD_CLOEXEC)) {
    CHECK_EQ(ftruncate(fd, static_cast<off_t>(bytes)), 0);
  }
  ~Fd() { close(fd); }
  int fd;
};

}  // namespace

TEST(it_has_at_least_one_byte) { CHECK_THROWS(UsageError, HostMemory(open_test_driver(), -1, 0)); }

TEST(more_than_the_system_can_give_is_refused) {
  CHECK_THROWS(std::system_error, HostMemory(open_test_driver(), -1, std::size_t{1} << 60));
  CHECK_THROWS(std::system_error, HostMemory(open_test_driver(), -1, std::size_t{1} << 63));
}

TEST(a_descriptor_must_hold_the_bytes) {
  const Fd fd(4096);
  CHECK_THROWS(UsageError, HostMemory(open_test_driver(), fd.fd, 4097));
  CHECK_THROWS(UsageError, HostMemory(open_test_driver(), 1 << 20, 4096));  // not open
  const HostMemory exact(open_test_driver(), fd.fd, 4096);
  CHECK(fcntl(fd.fd, F_GETFD) >= 0);  // still the caller's
}

TEST(it_is_shared_through_its_descriptor) {
  const Fd fd(page_bytes);
  const HostMemory one(open_test_driver(), fd.fd, page_bytes);
  const HostMemory two(open_test_driver(), fd.fd, page_bytes);
  std::memcpy(one.data(), pattern(1, page_bytes).data(), page_bytes);
  CHECK_EQ(std::memcmp(two.data(), pattern(1, page_bytes).data(), page_bytes), 0);
}

TEST(fresh_memory_is_zero) {
  const HostMemory memory(open_test_driver(), -1, 4097);
  CHECK_EQ(memory.bytes(), 8192);  // in whole pages of the system
  for (std::size_t i = 0; i < memory.bytes(); ++i) CHECK_EQ(memory.data()[i], std::byte{0});
}

TEST(it_is_registered_while_it_lives) {
  Bench bench;
  const DevicePtr base = bench.mapped(1);
  std::byte* gone = nullptr;
  {
    const HostMemory memory(bench.driver(), -1, page_bytes);
    gone = memory.data();
    CHECK_OK(bench->copy_to_device(base, memory.data(), page_bytes, bench.stream()));
    CHECK_OK(bench->stream_synchronize(bench.stream()));
  }
  CHECK_EQ(bench->host_unregister(gone), Status::host_memory_not_registered);
}

TEST(a_refused_registration_leaves_nothing) {
  const auto plan = std::make_shared<FaultPlan>();
  const DriverPtr inner = open_test_driver();
  const DriverPtr faulty = with_faults(inner, plan);
  const Fd fd(page_bytes);
  const int next = dup(fd.fd);
  close(next);
  plan->arm(1, Status::out_of_memory, false);
  CHECK_THROWS(DriverError, HostMemory(faulty, fd.fd, page_bytes));
  plan->arm(1, Status::out_of_memory, false);
  CHECK_THROWS(DriverError, HostMemory(faulty, -1, page_bytes));
  const int again = dup(fd.fd);
  close(again);
  CHECK_EQ(again, next);  // no descriptor was left open
  const HostMemory memory(faulty, fd.fd, page_bytes);
}

TEST(it_grows_at_the_addresses_it_has) {
  Bench bench;
  const DevicePtr base = bench.mapped(2);
  const Fd fd(8192);
  HostMemory memory(bench.driver(), -1, 5000, 5 * 4096);
  std::byte* const data = memory.data();
  CHECK_EQ(memory.missing_bytes(8192), 0);
  CHECK_EQ(memory.missing_bytes(8193), 4096);
  memory.grow(-1, 1);  // it is longer already
  std::memcpy(data, pattern(1, 8192).data(), 8192);
  memory.grow(fd.fd, 16384);
  CHECK_EQ(memory.bytes(), 16384);
  CHECK_EQ(memory.data(), data);
  CHECK_EQ(std::memcmp(data, pattern(1, 8192).data(), 8192), 0);
  std::memcpy(data + 8192, pattern(2, 8192).data(), 8192);
  Bytes seen(8192);
  CHECK_EQ(pread(fd.fd, seen.data(), 8192, 0), 8192);
  CHECK(seen == pattern(2, 8192));
  for (const Run& run : memory.cut({1, 16384})) {
    CHECK_OK(
        bench->copy_to_device(base + run.begin, data + run.begin, run.bytes(), bench.stream()));
  }
  CHECK_OK(bench->stream_synchronize(bench.stream()));
  CHECK(bench.read(base + 8192, 8192) == pattern(2, 8192));
  CHECK((memory.cut({8000, 9000}) == std::vector<Run>{{8000, 8192}, {8192, 9000}}));
  CHECK((memory.cut({8192, 16384}) == std::vector<Run>{{8192, 16384}}));
  CHECK(memory.cut({5, 5}).empty());
}

TEST(growth_that_fails_changes_nothing) {
  const auto plan = std::make_shared<FaultPlan>();
  const DriverPtr faulty = with_faults(open_test_driver(), plan);
  HostMemory memory(faulty, -1, 4096, 16384);
  const auto refused = [&](int fd, std::size_t bytes) {
    CHECK_THROWS(UsageError, memory.grow(fd, bytes));
    CHECK_EQ(memory.bytes(), 4096);
  };
  const Fd small(4096);
  refused(small.fd, 12288);
  refused(-1, 16385);
  refused(1 << 20, 8192);
  refused(-1, ~std::size_t{0});
  CHECK_THROWS(std::system_error, memory.missing_bytes(~std::size_t{0}));
  plan->arm(1, Status::out_of_memory, false);
  CHECK_THROWS(DriverError, memory.grow(-1, 8192));
  CHECK_EQ(memory.bytes(), 4096);
  memory.grow(-1, 16384);
  CHECK_EQ(memory.bytes(), 16384);
}

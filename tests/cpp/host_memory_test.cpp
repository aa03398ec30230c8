// Pinned host memory over a memfd: its limits, and that it goes without a trace.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <system_error>

#include "bench.h"
#include "driver/fault.h"
#include "mapped_files.h"

using namespace gpupool;

namespace {

struct Fd {
  explicit Fd(std::size_t bytes) : fd(memfd_create("test", MFD_CLOEXEC)) {
    CHECK_EQ(ftruncate(fd, static_cast<off_t>(bytes)), 0);
  }
  ~Fd() { close(fd); }
  int fd;
};

class PassOn : public Driver {
 public:
  PassOn() = default;
#define GPUPOOL_PASS_ON(name, params, args, needs_context) \
  Status name params noexcept override { return inner_->name args; }
  GPUPOOL_DRIVER_CALLS(GPUPOOL_PASS_ON)
#undef GPUPOOL_PASS_ON
  std::int64_t now_ns() const noexcept override { return inner_->now_ns(); }
  DeviceKind kind() const noexcept override { return inner_->kind(); }
  int ordinal() const noexcept override { return inner_->ordinal(); }

 private:
  const DriverPtr inner_ = open_test_driver();
};

// Keeps the registrations to itself, so that they may be larger than memory, and fails the n-th.
struct Registrar final : PassOn {
  Status host_register(void* memory, std::size_t bytes) noexcept override {
    if (fail_at > 0 && --fail_at == 0) return Status::out_of_memory;
    runs[static_cast<std::byte*>(memory)] = bytes;
    return Status::success;
  }
  Status host_unregister(void* memory) noexcept override {
    if (keeps) return Status::unknown;
    return runs.erase(static_cast<std::byte*>(memory)) == 1 ? Status::success
                                                            : Status::host_memory_not_registered;
  }
  std::map<std::byte*, std::size_t> runs;
  std::size_t fail_at = 0;
  bool keeps = false;
};

std::size_t images_mapped() { return memfds_mapped("gpupool-image"); }

// One registration may have so many bytes.
constexpr std::size_t most = std::size_t{64} << 30;

}  // namespace

TEST(it_has_at_least_one_byte) { CHECK_THROWS(UsageError, HostMemory(open_test_driver(), -1, 0)); }

TEST(more_than_the_system_can_give_is_refused) {
  CHECK_THROWS(std::system_error, HostMemory(open_test_driver(), -1, std::size_t{1} << 60));
  CHECK_THROWS(std::system_error, HostMemory(open_test_driver(), -1, std::size_t{1} << 63));
  // Which is past the end of all addresses with what makes room to align it.
  CHECK_THROWS(std::system_error, HostMemory(open_test_driver(), -1, ~std::size_t{8191}));
  CHECK_THROWS(std::system_error, HostMemory(open_test_driver(), -1, 4096, ~std::size_t{8191}));
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

// Nothing of it is touched, so it takes no memory.
TEST(registrations_cover_it_exactly_and_all_go_back) {
  const std::size_t before = images_mapped();
  for (const std::size_t bytes :
       {std::size_t{1}, most - 1, most, most + 1, 2 * most, 2 * most + 4097}) {
    const std::size_t whole = (bytes + 4095) / 4096 * 4096;
    const std::size_t parts = (whole + most - 1) / most;
    const auto registrar = std::make_shared<Registrar>();
    {
      const HostMemory memory(registrar, -1, bytes);
      std::byte* at = memory.data();
      for (const auto& [begin, size] : registrar->runs) {
        CHECK(begin == at);
        CHECK(size <= most);
        at += size;
      }
      CHECK(at == memory.data() + whole);
      CHECK_EQ(registrar->runs.size(), parts);
    }
    CHECK(registrar->runs.empty());
    for (std::size_t nth = 1; nth <= parts; ++nth) {
      registrar->fail_at = nth;
      CHECK_THROWS(DriverError, HostMemory(registrar, -1, bytes));
      CHECK(registrar->runs.empty());
      CHECK_EQ(images_mapped(), before);
    }
  }
}

TEST(growth_refused_by_the_driver_leaves_the_registrations_there_were) {
  const auto registrar = std::make_shared<Registrar>();
  HostMemory memory(registrar, -1, 4096, 3 * most);
  const auto before = registrar->runs;
  const std::size_t mapped = images_mapped();
  for (std::size_t nth = 1; nth <= 3; ++nth) {
    registrar->fail_at = nth;
    CHECK_THROWS(DriverError, memory.grow(-1, 2 * most + 8192));
    CHECK(registrar->runs == before);
    CHECK_EQ(memory.bytes(), 4096);
    CHECK_EQ(images_mapped(), mapped);  // the file is let go
  }
  memory.grow(-1, 2 * most + 8192);
  CHECK_EQ(registrar->runs.size(), 4);
}

TEST(what_the_driver_does_not_let_go_stays_mapped) {
  const std::size_t before = images_mapped();
  const auto registrar = std::make_shared<Registrar>();
  registrar->keeps = true;
  {
    const HostMemory memory(registrar, -1, 4096);
  }
  CHECK_EQ(images_mapped(), before + 1);
}

TEST(what_is_still_registered_from_a_failure_cannot_grow) {
  const auto registrar = std::make_shared<Registrar>();
  HostMemory memory(registrar, -1, 4096, 3 * most);
  registrar->fail_at = 2;
  registrar->keeps = true;
  CHECK_THROWS(DriverError, memory.grow(-1, 2 * most));
  const auto stuck = registrar->runs;
  CHECK_EQ(stuck.size(), 2);
  registrar->keeps = false;
  CHECK_THROWS(UsageError, memory.grow(-1, 8192));
  CHECK(registrar->runs == stuck);
  memory.grow(-1, 4096);  // it has those already
}

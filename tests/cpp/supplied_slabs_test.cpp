// Slabs over memory from outside: used, kept, and let go.
#include "image/supplied_slabs.h"

#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"
#include "driver/fault.h"

using namespace gpupool;

namespace {

class Memfd {
 public:
  explicit Memfd(std::size_t bytes = mib) : fd_(memfd_create("slab", MFD_CLOEXEC)) {
    CHECK(fd_ >= 0 && ftruncate(fd_, static_cast<off_t>(bytes)) == 0);
  }
  ~Memfd() { close(fd_); }
  Memfd(const Memfd&) = delete;
  Memfd& operator=(const Memfd&) = delete;
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

TEST(a_slab_is_the_memory_that_was_supplied) {
  const DriverPtr driver = open_host_driver();
  SuppliedSlabs source(driver, mib);
  CHECK_THROWS(NoSlabSupplied, source.acquire());
  const Memfd memory;
  source.supply(memory.get());
  const DevicePtr run = source.acquire();
  const Bytes content = pattern(1, mib);
  std::memcpy(reinterpret_cast<void*>(run), content.data(), mib);
  Bytes there(mib);
  CHECK_EQ(pread(memory.get(), there.data(), mib, 0), static_cast<ssize_t>(mib));
  CHECK(there == content);
  CHECK_THROWS(NoSlabSupplied, source.acquire());
  source.release(run);
  CHECK_THROWS(UsageError, source.release(run));
  CHECK_EQ(source.acquire(), run);
  source.release(run);
}

TEST(what_is_in_use_stays) {
  const DriverPtr driver = open_host_driver();
  SuppliedSlabs source(driver, mib);
  const Memfd one, two, three;
  for (const Memfd* memory : {&one, &two, &three}) source.supply(memory->get());
  const DevicePtr first = source.acquire(), second = source.acquire();
  CHECK_EQ(source.drop_idle(), 1);
  CHECK_EQ(source.drop_idle(), 0);
  CHECK_EQ(source.in_use(), 2);
  source.release(first);
  CHECK_EQ(source.idle(), 1);
  CHECK_EQ(source.drop_idle(), 1);
  std::memset(reinterpret_cast<void*>(second), 1, mib);
  source.release(second);
  CHECK_EQ(source.drop_idle(), 1);
  CHECK_EQ(source.idle() + source.in_use() + source.lost(), 0);
  // It was registered, and is no longer: the address is not even mapped.
  CHECK(driver->host_unregister(reinterpret_cast<void*>(second)) != Status::success);
  CHECK(msync(reinterpret_cast<void*>(second), mib, MS_ASYNC) != 0);
}

TEST(what_cannot_be_supplied_changes_nothing) {
  const auto plan = std::make_shared<FaultPlan>();
  SuppliedSlabs source(with_faults(open_host_driver(), plan), mib);
  const Memfd small(mib - 4096), memory;
  CHECK_THROWS(UsageError, source.supply(small.get()));
  CHECK_THROWS(UsageError, source.supply(-1));
  plan->arm(1, Status::out_of_memory, false);
  CHECK_THROWS(DriverError, source.supply(memory.get()));
  CHECK_EQ(source.idle(), 0);
  source.supply(memory.get());
  CHECK_EQ(source.drop_idle(), 1);
}

TEST(what_the_driver_does_not_let_go_is_lost_and_not_said_to_be_gone) {
  const auto plan = std::make_shared<FaultPlan>();
  SuppliedSlabs source(with_faults(open_host_driver(), plan), mib);
  const Memfd one, two;
  source.supply(one.get());
  source.supply(two.get());
  plan->arm(1, Status::unknown, false, true);
  CHECK_EQ(source.drop_idle(), 1);
  CHECK_EQ(plan->injected(), 1);
  CHECK_EQ(source.lost(), 1);
  CHECK_EQ(source.idle(), 0);
  CHECK_THROWS(NoSlabSupplied, source.acquire());
}

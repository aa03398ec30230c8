// Memory that is there for reading alone, as the host device sees to it.
#include <sys/wait.h>
#include <unistd.h>

#include "two_streams.h"

using namespace gpupool;

namespace {
constexpr Status invalid = Status::invalid_value;
constexpr Status fault = Status::illegal_address;
}  // namespace

TEST(what_is_read_only_is_not_written_to) {
  Bench bench;
  const DevicePtr base = bench.mapped(2), middle = base + page_bytes;
  bench.write(base, pattern(1, 2 * page_bytes));
  CHECK_OK(bench->set_read_only(middle, page_bytes));
  const void* const source = bench.staging();
  auto* const sums = reinterpret_cast<std::uint64_t*>(bench.staging() + page_bytes);
  const std::size_t size = 4096;
  CHECK_EQ(bench->fill(middle, 0, size, bench.stream()), invalid);
  CHECK_EQ(bench->copy_to_device(middle, source, size, bench.stream()), invalid);
  CHECK_EQ(bench->copy_to_device(base, source, 2 * page_bytes, bench.stream()), invalid);
  CHECK_EQ(bench->copy_to_device_digest(middle, source, size, sums, bench.stream()), invalid);
  CHECK_EQ(bench->copy_batch_to_device(&middle, &source, &size, 1, bench.stream()), invalid);
  CHECK_OK(bench->digest(middle, size, sums, bench.stream()));
  CHECK(bench.read(base, 2 * page_bytes) == pattern(1, 2 * page_bytes));
}

TEST(a_processor_that_writes_to_it_is_stopped) {
  Bench bench;
  const DevicePtr base = bench.mapped(2);
  CHECK_OK(bench->set_read_only(base, page_bytes));
  const auto child_writes_to = [](DevicePtr address) {
    const pid_t child = fork();
    if (child == 0) {
      *reinterpret_cast<volatile char*>(address) = 1;
      _exit(0);
    }
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  };
  CHECK(!child_writes_to(base));
  CHECK(child_writes_to(base + page_bytes));
}

// As when it is shared while a copy is in flight.
TEST(a_copy_to_what_has_become_read_only_is_a_fault) {
  Two two;
  const DevicePtr base = two.mapped(1);
  {
    const auto held = two.busy(two.other);
    CHECK_OK(two->copy_to_device(base, two.staging(), 4096, two.other));
    CHECK_OK(two->set_read_only(base, page_bytes));
  }
  CHECK_EQ(two->stream_synchronize(two.other), fault);
}

// What the host device refuses of a batch of copies, and the orders in which it makes them, where
// cuda.h promises nothing.
#include <set>

#include "batch_bench.h"
#include "driver/host_batch.h"
#include "two_streams.h"

using namespace gpupool;

namespace {

constexpr Status invalid = Status::invalid_value;
constexpr Status fault = Status::illegal_address;

// Two copies that are in order, and a third that is not.
struct Refused : Two {
  Refused() {
    std::fill_n(staging(), 5 * 4096, std::byte{7});
    CHECK_OK((*this)->fill(base, 1, 9 * page_bytes, stream()));
    batch.add(base, staging(), 4096);
    batch.add(base + 8192, staging() + 4096, 4096);
  }
  void both_refuse() {
    for (const auto copy : {&BatchOf::to_device, &BatchOf::to_host}) {
      CHECK_EQ((batch.*copy)(*driver(), stream()), invalid);
      CHECK_OK((*this)->stream_synchronize(stream()));
      CHECK_EQ(staging()[0], std::byte{7});
      CHECK(all_are(read(base, 5 * 4096), 1));
      std::fill_n(staging(), 5 * 4096, std::byte{7});  // read() went over it
    }
  }
  BatchOf batch;
};

}  // namespace

TEST(a_batch_has_a_copy_and_arrays) {
  Refused refused;
  Driver& driver = *refused.driver();
  const BatchOf& all = refused.batch;
  const StreamHandle on = refused.stream();
  CHECK_EQ(BatchOf().to_device(driver, on), invalid);
  const auto* device = all.device.data();
  auto* const host = all.host.data();
  const auto* sizes = all.sizes.data();
  CHECK_EQ(driver.copy_batch_to_device(device, host, sizes, 0, on), invalid);
  CHECK_EQ(driver.copy_batch_to_host(host, device, sizes, 0, on), invalid);
  CHECK_EQ(driver.copy_batch_to_device(nullptr, host, sizes, 2, on), invalid);
  CHECK_EQ(driver.copy_batch_to_device(device, nullptr, sizes, 2, on), invalid);
  CHECK_EQ(driver.copy_batch_to_device(device, host, nullptr, 2, on), invalid);
  CHECK_EQ(driver.copy_batch_to_host(nullptr, device, sizes, 2, on), invalid);
  CHECK_EQ(driver.copy_batch_to_host(host, nullptr, sizes, 2, on), invalid);
  CHECK_EQ(driver.copy_batch_to_host(host, device, nullptr, 2, on), invalid);
  CHECK_EQ(all.to_device(driver, nullptr), Status::invalid_handle);
}

TEST(no_copy_of_a_batch_is_of_no_bytes) {
  Refused refused;
  refused.batch.add(refused.base + 4 * 4096, refused.staging() + 8192, 0);
  refused.both_refuse();
}

TEST(no_copy_of_a_batch_is_of_no_address) {
  Refused refused;
  refused.batch.add(0, refused.staging() + 8192, 4096);
  refused.both_refuse();
  refused.batch.device.back() = refused.base + 4 * 4096;
  refused.batch.host.back() = nullptr;
  refused.both_refuse();
}

TEST(a_batch_needs_memory_that_is_registered) {
  Refused refused;
  Bytes elsewhere(4096);
  refused.batch.add(refused.base + 4 * 4096, reinterpret_cast<std::byte*>(elsewhere.data()), 4096);
  refused.both_refuse();
  refused.batch.host.back() = refused.staging() + 64 * mib - 4095;  // a byte beyond its end
  refused.both_refuse();
}

TEST(a_batch_needs_addresses_that_are_mapped) {
  Refused refused;
  refused.batch.add(refused.base + 9 * page_bytes - 4095, refused.staging() + 8192, 4096);
  refused.both_refuse();
}

TEST(what_a_batch_writes_does_not_overlap) {
  for (const bool to_device : {true, false}) {
    Two two;
    std::byte* const host = two.staging();
    const auto run = [&](std::size_t apart, std::size_t bytes) {
      BatchOf batch;  // apart where they are written, the same where they are read
      batch.add(two.base + (to_device ? apart : 0), host + (to_device ? 0 : apart), bytes);
      batch.add(two.base + 2 * 4096, host + 2 * 4096, 4096);
      batch.add(two.base, host, 4096);
      const Status status = to_device ? batch.to_device(*two.driver(), two.stream())
                                      : batch.to_host(*two.driver(), two.stream());
      CHECK_OK(two->stream_synchronize(two.stream()));
      return status;
    };
    CHECK_OK(run(4096, 4096));  // they touch
    CHECK_EQ(run(4095, 1), invalid);
    CHECK_EQ(run(4095, 4096), invalid);
    CHECK_EQ(run(0, 4096), invalid);
    CHECK_EQ(run(2 * 4096 - 1, 2), invalid);
    CHECK_OK(run(2 * 4096 - 1, 1));
  }
}

TEST(memory_gone_under_a_batch_is_a_sticky_fault) {
  for (const bool of_device : {true, false}) {
    for (const bool to_device : {true, false}) {
      Two two;
      const DevicePtr victim = two.mapped(1);
      Bytes memory(4096);
      CHECK_OK(two->host_register(memory.data(), memory.size()));
      BatchOf batch;
      batch.add(two.base, two.staging(), 4096);
      batch.add(victim, reinterpret_cast<std::byte*>(memory.data()), 4096);
      {
        const auto busy = two.busy(two.other);
        CHECK_OK(to_device ? batch.to_device(*two.driver(), two.other)
                           : batch.to_host(*two.driver(), two.other));
        if (of_device) {
          CHECK_OK(two->unmap(victim, page_bytes));
        } else {
          CHECK_OK(two->host_unregister(memory.data()));
        }
      }
      CHECK_EQ(two->stream_synchronize(two.other), fault);
      CHECK_EQ(memory[0], 0);
    }
  }
}

TEST(a_batch_is_cut_anywhere_and_stays_whole) {
  const DevicePtr devices[] = {1000, 2000, 3000};
  std::byte memory[64];
  void* const memories[] = {memory, memory + 20, memory + 40};
  const std::size_t sizes[] = {3, 1, 6};
  const host::Batch<void*> batch(devices, memories, sizes, {2, 0, 1});
  CHECK_EQ(batch.bytes(), 10);
  for (std::size_t begin = 0; begin < 10; ++begin) {
    for (std::size_t end = begin + 1; end <= 10; ++end) {
      std::vector<DevicePtr> seen;
      const Status status = batch.each(begin, end, [&](DevicePtr at, void* to, std::size_t n) {
        const std::size_t i = at / 1000 - 1;
        CHECK_EQ(at - devices[i], static_cast<std::size_t>(static_cast<std::byte*>(to) -
                                                           static_cast<std::byte*>(memories[i])));
        for (std::size_t k = 0; k < n; ++k) seen.push_back(at + k);
        return Status::success;
      });
      CHECK_OK(status);
      const std::vector<DevicePtr> all = {3000, 3001, 3002, 3003, 3004,
                                          3005, 1000, 1001, 1002, 2000};
      CHECK(seen == std::vector<DevicePtr>(all.begin() + static_cast<std::ptrdiff_t>(begin),
                                           all.begin() + static_cast<std::ptrdiff_t>(end)));
    }
  }
  int calls = 0;
  CHECK_EQ(batch.each(0, 10, [&](DevicePtr, void*, std::size_t) { return ++calls, fault; }), fault);
  CHECK_EQ(calls, 1);
}

// With stepped streams, whatever part of a batch may have been made is seen between two calls: that
// of copies in order, cut into a few pieces, would be a few runs of them.
TEST(stepped_copies_of_a_batch_come_in_any_order) {
  constexpr std::size_t count = 16, bytes = 64;
  std::set<std::size_t> firsts;
  std::size_t most_runs = 0;
  for (std::uint64_t seed = 1; seed <= 400; ++seed) {
    Bench bench(open_stepped(seed, page_bytes));
    const DevicePtr base = bench.mapped(1);
    CHECK_OK(bench->fill(base, 1, count * bytes, bench.stream()));
    CHECK_OK(bench->stream_synchronize(bench.stream()));
    std::fill_n(bench.staging(), count * bytes, std::byte{0});
    BatchOf batch;
    for (std::size_t i = 0; i < count; ++i) {
      batch.add(base + i * bytes, bench.staging() + i * bytes, bytes);
    }
    EventHandle event = nullptr;
    CHECK_OK(bench->event_create(&event));
    CHECK_OK(batch.to_host(*bench.driver(), bench.stream()));
    CHECK_OK(bench->event_record(event, bench.stream()));
    for (bool done = false; !done;) {
      done = bench->event_query(event) == Status::success;
      std::size_t runs = 0, made = 0, last = count;
      for (std::size_t i = 0; i < count; ++i) {
        const bool is = bench.staging()[(i + 1) * bytes - 1] == std::byte{1};
        if (!is) continue;
        ++made;
        if (last + 1 != i) ++runs;
        last = i;
      }
      if (made == 1) firsts.insert(last);
      if (done) CHECK_EQ(made, count);
      if (!done) most_runs = std::max(most_runs, runs);
    }
  }
  CHECK(most_runs >= 5);
  CHECK(firsts.size() >= 4);
}

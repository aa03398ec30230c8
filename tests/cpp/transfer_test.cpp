// Copy streams: chunks add up to the whole, errors are reported, nothing runs on after the end.
#include "bench.h"
#include "driver/fault.h"
#include "hooked.h"
#include "transfer/lanes.h"

using namespace gpupool;

TEST(chunks_add_up_to_the_whole) {
  Bench bench;
  const DevicePtr base = bench.mapped(2);
  const HostMemory source(bench.driver(), -1, 2 * page_bytes),
      back(bench.driver(), -1, 2 * page_bytes);
  const std::size_t bytes = 2 * page_bytes - 777;
  const Bytes content = pattern(1, bytes);
  for (const std::size_t chunk : {std::size_t{4096}, page_bytes, bytes, 4 * page_bytes}) {
    std::copy(content.begin(), content.end(), reinterpret_cast<std::uint8_t*>(source.data()));
    std::fill_n(back.data(), bytes, std::byte{0});
    CopyStream stream(bench.driver(), chunk);
    stream.fill(base, 0, 2 * page_bytes);
    stream.to_device(base, source.data(), bytes);
    stream.to_host(back.data(), base, bytes);
    stream.to_device(base, source.data(), 0);
    stream.synchronize();
    CHECK(std::equal(content.begin(), content.end(),
                     reinterpret_cast<const std::uint8_t*>(back.data())));
    CHECK(all_are(bench.read(base + bytes, 777), 0));
  }
}

TEST(a_chunk_has_at_least_one_byte) { CHECK_THROWS(UsageError, CopyStream(open_test_driver(), 0)); }

TEST(streams_wait_for_events) {
  Bench bench;
  const DevicePtr base = bench.mapped(8);
  CopyStream first(bench.driver(), page_bytes), second(bench.driver(), page_bytes);
  const Event event(bench.driver());
  CHECK(event.done());
  for (std::uint8_t round = 1; round < 20; ++round) {
    first.fill(base, round, 8 * page_bytes);
    first.record(event);
    second.wait_for(event);
    second.to_host(bench.staging(), base + 8 * page_bytes - 16, 16);
    second.synchronize();
    CHECK_EQ(bench.staging()[15], std::byte{round});
    event.wait();
    CHECK(event.done());
  }
}

TEST(errors_name_the_call_and_the_status) {
  const auto plan = std::make_shared<FaultPlan>();
  const DriverPtr driver = with_faults(open_test_driver(), plan);
  CopyStream stream(driver, page_bytes);
  plan->arm(1, Status::unknown, false);
  try {
    stream.synchronize();
    check::fail(__FILE__, __LINE__, "nothing was thrown");
  } catch (const DriverError& error) {
    CHECK_EQ(std::string(error.what()), "stream_synchronize failed: CUDA_ERROR_UNKNOWN");
  }
  CHECK_EQ(plan->injected(), 1);
  stream.synchronize();
  plan->arm(1, Status::out_of_memory, true);
  CHECK_THROWS(DriverError, CopyStream(driver, page_bytes));
  CHECK_THROWS(DriverError, Event(driver));
  CHECK_EQ(plan->injected(), 2);
  plan->disarm();
}

TEST(the_end_of_a_stream_waits_for_its_work) {
  Bench bench;
  const DevicePtr base = bench.mapped(8);
  {
    CopyStream stream(bench.driver(), page_bytes);
    for (std::uint8_t i = 0; i <= 20; ++i) stream.fill(base, i, 8 * page_bytes);
  }
  CHECK(all_are(bench.read(base, 8 * page_bytes), 20));
}

TEST(every_lane_is_waited_for_also_after_one_fails) {
  Bench bench;
  const auto plan = std::make_shared<FaultPlan>();
  const auto hooked = std::make_shared<Hooked>(with_faults(bench.driver(), plan));
  CopyLanes lanes(hooked, page_bytes, 3);
  int waits = 0;
  hooked->before = [&](DriverCall call) { waits += call == DriverCall::stream_synchronize; };
  plan->arm(1, Status::unknown, false);
  CHECK_THROWS(DriverError, lanes.synchronize());
  CHECK_EQ(waits, 3);
  hooked->before = [](DriverCall) {};
}

TEST(copies_of_lanes_add_up_to_the_whole) {
  Bench bench;
  const DevicePtr base = bench.mapped(2);
  const HostMemory source(bench.driver(), -1, 2 * page_bytes);
  const Bytes content = pattern(1, 2 * page_bytes);
  std::copy(content.begin(), content.end(), reinterpret_cast<std::uint8_t*>(source.data()));
  const HostMemory sums(bench.driver(), -1, 4096);
  auto* sum = reinterpret_cast<std::uint64_t*>(sums.data());
  for (const std::size_t count : {1, 2, 3}) {
    CHECK_OK(bench->fill(base, 0, 2 * page_bytes, bench.stream()));
    CHECK_OK(bench->stream_synchronize(bench.stream()));
    CopyLanes lanes(bench.driver(), page_bytes, count);
    CHECK_EQ(lanes.count(), count);
    std::stop_source stop;
    {
      const CopyLanes::Window window(bench.driver(), lanes, stop.get_token());
      constexpr std::size_t part = page_bytes / 8;
      for (std::size_t at = 0; at < 2 * page_bytes; at += part) {
        lanes.to_device(base + at, source.data() + at, part, at % 3 == 0 ? sum++ : nullptr);
      }
      stop.request_stop();  // nothing is left to stop
      lanes.synchronize();
      CHECK(bench.read(base, 2 * page_bytes) == content);
      CHECK_THROWS(Cancelled, lanes.to_device(base, source.data(), 1, nullptr));
    }
    lanes.to_device(base, source.data(), 1, nullptr);  // there is no window any more
    lanes.synchronize();
  }
}

TEST(there_is_at_least_one_lane) {
  CHECK_THROWS(UsageError, CopyLanes(open_test_driver(), page_bytes, 0));
}

TEST(all_lanes_are_waited_for_although_one_fails) {
  Bench bench;
  const auto plan = std::make_shared<FaultPlan>();
  CopyLanes lanes(with_faults(bench.driver(), plan), page_bytes, 3);
  plan->arm_call(DriverCall::stream_synchronize, 1, 1, Status::unknown);
  CHECK_THROWS(DriverError, lanes.synchronize());
  plan->arm_call(DriverCall::stream_synchronize, 3, 1, Status::unknown);
  CHECK_THROWS(DriverError, lanes.synchronize());  // the third was asked
  plan->disarm();
  lanes.synchronize();
}

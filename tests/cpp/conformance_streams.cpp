// Streams and events: order within a stream, and between streams only where an event says so.
#include <thread>

#include "bench.h"

using namespace gpupool;

namespace {

struct Two : Bench {
  Two() {
    CHECK_OK((*this)->stream_create(&other));
    CHECK_OK((*this)->event_create(&event));
    CHECK_OK((*this)->event_create(&answer));
    base = mapped(9);
  }
  ~Two() {
    static_cast<void>((*this)->stream_destroy(other));
    static_cast<void>((*this)->event_destroy(event));
    static_cast<void>((*this)->event_destroy(answer));
  }
  // Enough to keep a stream busy while the test goes on.
  void slow_fill(std::uint8_t value, StreamHandle on) {
    CHECK_OK((*this)->fill(base, value, 8 * page_bytes, on));
  }
  StreamHandle other = nullptr;
  EventHandle event = nullptr, answer = nullptr;
  DevicePtr base = 0;
};

}  // namespace

TEST(a_stream_runs_in_order) {
  Two two;
  for (int round = 0; round < 50; ++round) {
    two.slow_fill(static_cast<std::uint8_t>(round), two.stream());
  }
  CHECK(all_are(two.read(two.base, 8 * page_bytes), 49));
}

TEST(an_event_orders_one_stream_behind_another) {
  Two two;
  for (std::uint8_t round = 1; round < 20; ++round) {
    two.slow_fill(round, two.stream());
    CHECK_OK(two->event_record(two.event, two.stream()));
    CHECK_OK(two->stream_wait_event(two.other, two.event));
    CHECK_OK(two->copy_to_host(two.staging(), two.base, 8 * page_bytes, two.other));
    CHECK_OK(two->stream_synchronize(two.other));
    const auto* seen = reinterpret_cast<const std::uint8_t*>(two.staging());
    CHECK(all_are(Bytes(seen, seen + 8 * page_bytes), round));
  }
}

TEST(a_wait_is_for_the_last_record_at_the_time_of_the_call) {
  Two two;
  for (int round = 0; round < 50; ++round) {
    two.slow_fill(1, two.stream());
    CHECK_OK(two->event_record(two.event, two.stream()));
    CHECK_OK(two->stream_wait_event(two.other, two.event));
    CHECK_OK(two->event_record(two.answer, two.other));
    // If the other stream now waited for this later record, each would wait for the other.
    CHECK_OK(two->stream_wait_event(two.stream(), two.answer));
    CHECK_OK(two->event_record(two.event, two.stream()));
    CHECK_OK(two->stream_synchronize(two.stream()));
    CHECK_OK(two->stream_synchronize(two.other));
  }
}

TEST(an_event_never_recorded_counts_as_complete) {
  Two two;
  CHECK_OK(two->event_query(two.event));
  CHECK_OK(two->event_synchronize(two.event));
  CHECK_OK(two->stream_wait_event(two.stream(), two.event));
  CHECK_OK(two->stream_synchronize(two.stream()));
}

TEST(an_event_completes_with_the_work_before_it) {
  Two two;
  for (std::uint8_t round = 1; round < 20; ++round) {
    two.slow_fill(round, two.stream());
    CHECK_OK(two->event_record(two.event, two.stream()));
    const Status before = two->event_query(two.event);
    CHECK(before == Status::not_ready || before == Status::success);
    CHECK_OK(two->event_synchronize(two.event));
    CHECK_OK(two->event_query(two.event));
    const auto* seen = reinterpret_cast<const std::uint8_t*>(two.base);  // the host device's memory
    CHECK_EQ(seen[8 * page_bytes - 1], round);
  }
}

TEST(a_record_counts_from_the_last_one) {
  Two two;
  CHECK_OK(two->event_record(two.event, two.stream()));
  CHECK_OK(two->event_synchronize(two.event));
  for (int i = 0; i < 20; ++i) two.slow_fill(7, two.stream());
  CHECK_OK(two->event_record(two.event, two.stream()));
  CHECK_EQ(two->event_query(two.event), Status::not_ready);  // behind many milliseconds of work
  CHECK_OK(two->event_synchronize(two.event));
  CHECK_OK(two->event_query(two.event));
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

TEST(destroying_a_stream_finishes_its_work) {
  Two two;
  for (int i = 0; i < 10; ++i) two.slow_fill(9, two.other);
  CHECK_OK(two->stream_destroy(two.other));
  CHECK(all_are(two.read(two.base, 8 * page_bytes), 9));
}

TEST(destroying_an_event_leaves_its_waiters_alone) {
  Two two;
  two.slow_fill(3, two.stream());
  CHECK_OK(two->event_record(two.event, two.stream()));
  CHECK_OK(two->stream_wait_event(two.other, two.event));
  CHECK_OK(two->event_destroy(two.event));
  CHECK_OK(two->copy_to_host(two.staging(), two.base, 16, two.other));
  CHECK_OK(two->stream_synchronize(two.other));
  CHECK_EQ(reinterpret_cast<const std::uint8_t*>(two.staging())[0], 3);
}

TEST(any_thread_may_call) {
  Two two;
  std::vector<std::thread> threads;
  std::atomic<int> refused{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) {
        const StreamHandle on = t % 2 == 0 ? two.stream() : two.other;
        refused += two->fill(two.base + t * page_bytes, static_cast<std::uint8_t>(t), page_bytes,
                             on) != Status::success;
        refused += two->event_record(two.event, on) != Status::success;
        refused += two->event_synchronize(two.event) != Status::success;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(refused.load(), 0);
  CHECK_OK(two->stream_synchronize(two.other));
  for (int t = 0; t < 4; ++t) {
    CHECK(all_are(two.read(two.base + t * page_bytes, page_bytes), static_cast<std::uint8_t>(t)));
  }
}

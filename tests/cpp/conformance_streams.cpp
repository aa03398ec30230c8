// Streams and events: order within a stream, and between streams only where an event says so.
#include <atomic>
#include <thread>

#include "two_streams.h"

using namespace gpupool;

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

TEST(an_event_completes_with_the_work_before_it) {
  Two two;
  for (std::uint8_t round = 1; round < 20; ++round) {
    two.slow_fill(round, two.stream());
    CHECK_OK(two->copy_to_host(two.staging(), two.base + 4096, 16, two.stream()));
    CHECK_OK(two->event_record(two.event, two.stream()));
    const Status before = two->event_query(two.event);
    CHECK(before == Status::not_ready || before == Status::success);
    CHECK_OK(two->event_synchronize(two.event));
    CHECK_OK(two->event_query(two.event));
    CHECK_EQ(two.staging()[15], std::byte{round});
  }
}

TEST(an_event_seen_complete_means_the_work_is_done) {
  Two two;
  for (std::uint8_t round = 1; round < 20; ++round) {
    two.slow_fill(round, two.stream());
    CHECK_OK(two->copy_to_host(two.staging(), two.base, 16, two.stream()));
    CHECK_OK(two->event_record(two.event, two.stream()));
    Status status = Status::not_ready;
    while (status == Status::not_ready) status = two->event_query(two.event);
    CHECK_OK(status);
    CHECK_EQ(two.staging()[0], std::byte{round});
  }
}

TEST(an_event_is_not_complete_while_work_before_it_is_left) {
  Two two;
  const auto busy = two.busy(two.stream());
  CHECK_OK(two->event_record(two.event, two.stream()));
  CHECK_EQ(two->event_query(two.event), Status::not_ready);
  CHECK_EQ(two->event_query(two.event), Status::not_ready);
}

TEST(a_record_counts_from_the_last_one) {
  Two two;
  CHECK_OK(two->event_record(two.event, two.stream()));
  CHECK_OK(two->event_synchronize(two.event));
  {
    const auto busy = two.busy(two.stream());
    CHECK_OK(two->event_record(two.event, two.stream()));
    CHECK_EQ(two->event_query(two.event), Status::not_ready);
  }
  CHECK_OK(two->event_synchronize(two.event));
  CHECK_OK(two->event_query(two.event));
}

TEST(a_record_moves_an_event_to_another_stream) {
  Two two;
  const auto busy = two.busy(two.stream());
  CHECK_OK(two->event_record(two.event, two.stream()));
  CHECK_OK(two->event_record(two.event, two.other));
  CHECK_OK(two->event_synchronize(two.event));  // of the idle stream, not the busy one
}

TEST(streams_do_not_wait_for_one_another) {
  Two two;
  const auto busy = two.busy(two.stream());
  CHECK_OK(two->fill(two.base, 6, 64, two.other));
  CHECK_OK(two->copy_to_host(two.staging(), two.base, 64, two.other));
  CHECK_OK(two->stream_synchronize(two.other));
  CHECK_EQ(two.staging()[63], std::byte{6});
}

TEST(a_wait_holds_only_what_is_enqueued_after_it) {
  Two two;
  const auto busy = two.busy(two.stream());
  CHECK_OK(two->event_record(two.event, two.stream()));
  CHECK_OK(two->fill(two.base, 4, 64, two.other));
  CHECK_OK(two->copy_to_host(two.staging(), two.base, 64, two.other));
  CHECK_OK(two->event_record(two.answer, two.other));
  CHECK_OK(two->stream_wait_event(two.other, two.event));
  CHECK_OK(two->event_synchronize(two.answer));
  CHECK_EQ(two.staging()[0], std::byte{4});
}

TEST(what_is_behind_a_wait_does_not_run_before_it) {
  Two two;
  CHECK_OK(two->fill(two.base, 1, 64, two.other));
  CHECK_OK(two->stream_synchronize(two.other));
  {
    const auto busy = two.busy(two.stream());
    CHECK_OK(two->event_record(two.event, two.stream()));
    CHECK_OK(two->stream_wait_event(two.other, two.event));
    CHECK_OK(two->fill(two.base, 2, 64, two.other));
    CHECK_OK(two->event_record(two.answer, two.other));
    CHECK_EQ(two->event_query(two.answer), Status::not_ready);
  }
  CHECK_OK(two->event_synchronize(two.answer));
  CHECK(all_are(two.read(two.base, 64), 2));
}

TEST(waiting_for_a_stream_waits_for_what_it_waits_for) {
  Two two;
  for (std::uint8_t round = 1; round < 20; ++round) {
    two.slow_fill(round, two.stream());
    CHECK_OK(two->copy_to_host(two.staging(), two.base, 64, two.stream()));
    CHECK_OK(two->event_record(two.event, two.stream()));
    CHECK_OK(two->stream_wait_event(two.other, two.event));
    CHECK_OK(two->stream_synchronize(two.other));
    CHECK_EQ(two.staging()[63], std::byte{round});
  }
}

TEST(a_chain_of_events_orders_many_streams) {
  Two two;
  constexpr std::size_t count = 6;
  StreamHandle streams[count] = {};
  EventHandle events[count] = {};
  for (std::size_t i = 0; i < count; ++i) {
    CHECK_OK(two->stream_create(&streams[i]));
    CHECK_OK(two->event_create(&events[i]));
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (i > 0) CHECK_OK(two->stream_wait_event(streams[i], events[i - 1]));
    CHECK_OK(two->fill(two.base + i * 100, static_cast<std::uint8_t>(i + 1), 1000, streams[i]));
    CHECK_OK(two->event_record(events[i], streams[i]));
  }
  CHECK_OK(two->event_synchronize(events[count - 1]));
  const Bytes seen = two.read(two.base, count * 100);
  for (std::size_t i = 0; i < seen.size(); ++i) CHECK_EQ(seen[i], i / 100 + 1);
  for (std::size_t i = 0; i < count; ++i) {
    CHECK_OK(two->stream_destroy(streams[i]));
    CHECK_OK(two->event_destroy(events[i]));
  }
}

TEST(a_stream_may_wait_for_its_own_event) {
  Two two;
  two.slow_fill(8, two.stream());
  CHECK_OK(two->event_record(two.event, two.stream()));
  CHECK_OK(two->stream_wait_event(two.stream(), two.event));
  two.slow_fill(9, two.stream());
  CHECK(all_are(two.read(two.base, 8 * page_bytes), 9));
}

TEST(one_event_may_hold_two_streams) {
  Two two;
  StreamHandle third = nullptr;
  CHECK_OK(two->stream_create(&third));
  for (std::uint8_t round = 1; round < 10; ++round) {
    two.slow_fill(round, two.stream());
    CHECK_OK(two->event_record(two.event, two.stream()));
    CHECK_OK(two->stream_wait_event(two.other, two.event));
    CHECK_OK(two->stream_wait_event(third, two.event));
    CHECK_OK(two->copy_to_host(two.staging(), two.base, 64, two.other));
    CHECK_OK(two->copy_to_host(two.staging() + 64, two.base + 4096, 64, third));
    CHECK_OK(two->stream_synchronize(two.other));
    CHECK_OK(two->stream_synchronize(third));
    CHECK_EQ(two.staging()[63], std::byte{round});
    CHECK_EQ(two.staging()[127], std::byte{round});
  }
  CHECK_OK(two->stream_destroy(third));
}

TEST(an_idle_stream_is_synchronised_at_once) {
  Two two;
  CHECK_OK(two->stream_synchronize(two.other));
  CHECK_OK(two->stream_synchronize(two.other));
}

TEST(an_event_waited_for_twice_is_complete_twice) {
  Two two;
  two.slow_fill(1, two.stream());
  CHECK_OK(two->event_record(two.event, two.stream()));
  CHECK_OK(two->event_synchronize(two.event));
  CHECK_OK(two->event_synchronize(two.event));
  CHECK_OK(two->event_query(two.event));
}

TEST(the_work_of_a_destroyed_stream_is_done) {
  Two two;
  StreamHandle gone = nullptr;
  CHECK_OK(two->stream_create(&gone));
  for (int i = 0; i < 10; ++i) two.slow_fill(9, gone);
  CHECK_OK(two->event_record(two.event, gone));
  CHECK_OK(two->stream_destroy(gone));
  CHECK_OK(two->event_synchronize(two.event));
  CHECK(all_are(two.read(two.base, 8 * page_bytes), 9));
}

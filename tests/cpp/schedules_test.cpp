// Swaps and steps under many thousand stepped schedules: no kernel reads a stale or torn word, and
// nothing is left in flight. The same program is built again with each wait of swap and transfer
// deleted (see delete_waits.cmake), and must then fail.
#include <cstdio>

#include "stepped_models.h"
#include "transfer/transfer.h"

using namespace gpupool;

namespace {

// Runs `body(seed)`; a failure names the seed.
template <typename Body>
void for_schedules(std::uint64_t count, Body body) {
  for (std::uint64_t seed = 0; seed < count; ++seed) {
    try {
      body(seed);
    } catch (const std::exception& error) {
      check::fail(__FILE__, __LINE__, "schedule " + std::to_string(seed) + ": " + error.what());
    }
  }
}

// A copy stream and memory to copy from and to.
struct Copies {
  explicit Copies(std::uint64_t seed)
      : device(host_device(open_stepped(seed, small_page))),
        host(device, -1, small_page),
        reservation(std::make_shared<const Reservation>(device, small_page)),
        mapping(device, reservation, {Page::create(device, small_page)}) {
    mapping.map();
    std::memset(host.data(), 1, small_page);
  }
  DevicePtr base() const { return reservation->address(); }
  Bytes on_device() const {
    const auto* first = reinterpret_cast<const std::uint8_t*>(base());
    return Bytes(first, first + small_page);
  }
  std::shared_ptr<host::HostDriver> device;
  HostMemory host;
  ReservationPtr reservation;
  Mapping mapping;
};

}  // namespace

TEST(a_synchronised_stream_has_copied) {
  for_schedules(200, [](std::uint64_t seed) {
    Copies copies(seed);
    CopyStream stream(copies.device, 1000);
    stream.to_device(copies.base(), copies.host.data(), small_page);
    stream.synchronize();
    CHECK(all_are(copies.on_device(), 1));
  });
}

TEST(an_event_waited_for_has_come) {
  for_schedules(200, [](std::uint64_t seed) {
    Copies copies(seed);
    CopyStream stream(copies.device, 1000);
    const Event event(copies.device);
    stream.to_device(copies.base(), copies.host.data(), small_page);
    stream.record(event);
    event.wait();
    CHECK(all_are(copies.on_device(), 1));
  });
}

TEST(an_event_done_has_come) {
  for_schedules(200, [](std::uint64_t seed) {
    Copies copies(seed);
    CopyStream stream(copies.device, 1000);
    const Event event(copies.device);
    stream.to_device(copies.base(), copies.host.data(), small_page);
    stream.record(event);
    for (int polls = 0; !event.done(); ++polls) CHECK(polls < 10'000);
    CHECK(all_are(copies.on_device(), 1));
  });
}

TEST(a_stream_waits_for_an_event_of_another) {
  for_schedules(200, [](std::uint64_t seed) {
    Copies copies(seed);
    CopyStream first(copies.device, 1000), second(copies.device, 1000);
    const Event event(copies.device);
    first.to_device(copies.base(), copies.host.data(), small_page);
    first.record(event);
    second.wait_for(event);
    second.fill(copies.base(), 2, small_page);
    second.synchronize();
    first.synchronize();
    CHECK(all_are(copies.on_device(), 2));
  });
}

TEST(a_stream_ends_when_its_copies_have) {
  for_schedules(200, [](std::uint64_t seed) {
    Copies copies(seed);
    CopyStream(copies.device, 1000).to_device(copies.base(), copies.host.data(), small_page);
    CHECK_EQ(copies.device->pending(), 0);
    CHECK(all_are(copies.on_device(), 1));
  });
}

TEST(a_report_counts_the_copies_whole) {
  for_schedules(200, [](std::uint64_t seed) {
    SteppedMachine machine(seed, SteppedModel::pages);
    SteppedModel model(machine, 1);
    const SwapReport in = model.swap_in();
    CHECK(in.copy_ns >= static_cast<std::int64_t>((in.copied_bytes + in.filled_bytes) / 16));
    model.write();
    const SwapReport out = model.swap_out();
    CHECK(out.copy_ns >= static_cast<std::int64_t>(out.copied_bytes / 16));
  });
}

// A swap that fails at any call has nothing in flight when it says so, and the next one works.
TEST(nothing_is_in_flight_after_a_failed_swap) {
  const auto fail_each_call = [](bool out) {
    for (std::uint64_t nth = 1, injected = 1; injected > 0; ++nth) {
      for_schedules(20, [&](std::uint64_t seed) {
        SteppedMachine machine(seed, SteppedModel::pages);
        SteppedModel model(machine, 1);
        model.swap_in();
        model.write();
        if (!out) model.swap_out();
        model.finish_step();
        machine.plan->arm(nth, Status::unknown, false);
        try {
          out ? model.swap_out() : model.swap_in();
        } catch (const DriverError& error) {
          CHECK_EQ(error.status(), Status::unknown);
        }
        injected = machine.plan->injected();
        machine.plan->disarm();
        CHECK_EQ(machine.device->pending(), 0);
        CHECK(!model.memory().torn());
        if (!model.resident()) model.swap_in();
        model.read();
        model.write();
        model.swap_out();
        CHECK_EQ(machine.wrong, std::string());
      });
    }
  };
  fail_each_call(false);
  fail_each_call(true);
}

// While the driver refuses to wait, copies may be left in flight; the end of the model waits for
// them before it unmaps what they read or write.
TEST(the_end_of_a_model_waits_for_what_a_failed_swap_left) {
  for (const bool out : {false, true}) {
    for (std::uint64_t nth = 1; nth < 60; ++nth) {
      for_schedules(20, [&](std::uint64_t seed) {
        SteppedMachine machine(seed, SteppedModel::pages);
        SteppedModel model(machine, 1);
        if (out) {
          model.swap_in();
          model.write();
          model.finish_step();
        }
        machine.plan->arm(nth, Status::unknown, true);
        try {
          out ? model.swap_out() : model.swap_in();
        } catch (const DriverError&) {
        }
        machine.plan->disarm();
        model.end();
        CHECK_EQ(machine.device->pending(), 0);
        std::size_t bytes = 0;
        CHECK_OK(machine.device->page_granularity(&bytes));  // no fault has come of it
      });
    }
  }
}

TEST(swaps_and_steps_in_ten_thousand_schedules) {
  std::uint64_t swaps = 0, steps = 0;
  for_schedules(10'000, [&](std::uint64_t seed) {
    // Two of three models fit: one computes while another comes or goes.
    SteppedMachine machine(seed, 2 * SteppedModel::pages);
    SteppedModel models[] = {{machine, 1}, {machine, 2}, {machine, 3}};
    for (int turn = 0; turn < 12; ++turn) {
      SteppedModel& model = models[machine.random.below(3)];
      if (!model.resident()) {
        for (SteppedModel& other : models) {
          if (machine.pool.free_pages() < SteppedModel::pages && other.resident()) other.swap_out();
        }
        model.swap_in();
        ++swaps;
      } else if (machine.random.below(4) == 0) {
        model.swap_out();
        continue;
      }
      model.read();
      for (std::uint64_t n = machine.random.below(3); n > 0; --n) model.write();
      model.read();
      ++steps;
      if (machine.random.below(2) == 0) model.finish_step();
    }
    for (SteppedModel& model : models) {
      if (model.resident()) model.swap_out();
    }
    CHECK_EQ(machine.device->pending(), 0);
    CHECK_EQ(machine.pool.free_pages(), 2 * SteppedModel::pages);
    CHECK_EQ(machine.wrong, std::string());
  });
  std::printf("        10000 schedules, %llu swaps in, %llu steps\n",
              static_cast<unsigned long long>(swaps), static_cast<unsigned long long>(steps));
}

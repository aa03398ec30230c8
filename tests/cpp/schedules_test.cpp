// Swaps and steps under many thousand stepped schedules: no kernel reads a stale or torn word, and
// nothing is left in flight. The same program is built again with each wait of swap and transfer
// deleted (see delete_waits.cmake), and must then fail.
#include <cstdio>
#include <cstring>

#include "hooked.h"
#include "stepped_models.h"
#include "transfer/scrub.h"

using namespace gpupool;

TEST(a_swap_out_waits_for_all_kernels) {
  for_schedules(200, [](std::uint64_t seed) {
    SteppedMachine machine(seed, SteppedModel::pages);
    SteppedModel model(machine, 1);
    model.swap_in();
    for (int i = 0; i < 5; ++i) model.write();
    model.swap_out_at_once(0, seed % 2 == 0);
    model.swap_in();
    model.read();
    model.swap_out();
    CHECK_EQ(machine.wrong, std::string());
  });
}

TEST(the_end_of_a_resident_model_waits_for_all_kernels) {
  for_schedules(200, [](std::uint64_t seed) {
    SteppedMachine machine(seed, SteppedModel::pages);
    SteppedModel model(machine, 1);
    model.swap_in();
    model.write();
    model.end();
    std::size_t bytes = 0;
    CHECK_OK(machine.device->context_synchronize());
    CHECK_OK(machine.device->page_granularity(&bytes));  // no fault has come of it
  });
}

TEST(a_resident_region_grows_and_shrinks) {
  for_schedules(400, [](std::uint64_t seed) {
    SteppedMachine machine(seed, SteppedModel::pages + 3);
    SteppedModel model(machine, 1);
    model.swap_in();
    for (int turn = 0; turn < 6; ++turn) {
      model.write();
      model.read();
      model.resize_kv(8 * (1 + machine.random.below(6 * small_page / 8)));
      model.read();
      CHECK_EQ(machine.wrong, std::string());
    }
    model.finish_step();
    std::size_t bytes = 0;
    CHECK_OK(machine.device->page_granularity(&bytes));  // no fault has come of it
    CHECK_EQ(machine.wrong, std::string());
  });
}

// Fills that a failed growth has enqueued are over before its pages are unmapped.
TEST(nothing_is_in_flight_after_a_failed_resize) {
  for (std::uint64_t nth = 1, injected = 1; injected > 0; ++nth) {
    for_schedules(20, [&](std::uint64_t seed) {
      SteppedMachine machine(seed, SteppedModel::pages + 3);
      SteppedModel model(machine, 1);
      model.swap_in();
      machine.plan->arm(nth, Status::unknown, false);
      try {
        model.resize_kv(6 * small_page);
      } catch (const DriverError&) {
      }
      injected = machine.plan->injected();
      machine.plan->disarm();
      model.finish_step();
      CHECK_EQ(machine.device->pending(), 0);
      CHECK(model.resident());
      model.read();
      model.swap_out();
      CHECK_EQ(machine.wrong, std::string());
    });
  }
}

TEST(a_page_called_clean_is_zero) {
  for (std::uint64_t nth = 0, injected = 1; injected > 0; ++nth) {
    for_schedules(40, [&](std::uint64_t seed) {
      SteppedMachine machine(seed, 2);
      const std::shared_ptr<PagePool> pool(&machine.pool, [](PagePool*) {});
      machine.pool.create_ahead(2);
      Scrubber scrubber(machine.faulty, pool, 2);
      if (nth > 0) machine.plan->arm(nth, Status::unknown, false);  // at first none fails
      try {
        while (scrubber.scrub_free() > 0) {
        }
      } catch (const DriverError&) {
      }
      injected = nth == 0 ? 1 : machine.plan->injected();
      machine.plan->disarm();
      CHECK_EQ(machine.device->pending(), 0);
      if (injected == 0 || nth == 0) CHECK_EQ(machine.pool.statistics().clean, 2);
      for (const PageId id : machine.pool.acquire(1, 2)) {
        const auto place = std::make_shared<const Reservation>(machine.device, small_page);
        Mapping mapping(machine.device, place, {machine.pool.page(id)});
        mapping.map();
        const auto* first = reinterpret_cast<const std::uint8_t*>(place->address());
        if (machine.pool.is_clean(id)) CHECK(all_are(Bytes(first, first + small_page), 0));
      }
    });
  }
}

// The second attempt at a copy is waited for like the first.
TEST(what_is_copied_again_is_waited_for) {
  for_schedules(200, [](std::uint64_t seed) {
    std::shared_ptr<Hooked> hooked;
    SteppedMachine machine(seed, 4, [&](DriverPtr device) {
      return hooked = std::make_shared<Hooked>(std::move(device));
    });
    ModelMemory memory(machine.faulty, small_page, small_page, 2);
    const RegionPtr region = memory.add_region(Tag::weights, 3 * small_page, -1);
    memory.adopt_image(*region);
    std::vector<PagePtr> pages;
    for (const PageId id : machine.pool.acquire(1, 3)) pages.push_back(machine.pool.page(id));
    // Wrong for as long as the first attempt runs.
    std::byte& byte = region->image()[machine.random.below(region->bytes())];
    byte ^= std::byte{1};
    int copies = 0;
    hooked->before = [&](DriverCall call) {
      if (call == DriverCall::copy_to_device_digest && ++copies == 4) byte ^= std::byte{1};
    };
    const SwapReport report = memory.swap_in(pages);
    CHECK_EQ(report.recopied_bytes, small_page);
    CHECK(report.moving_ns >= static_cast<std::int64_t>(4 * small_page / 16));
    hooked->before = [](DriverCall) {};
    CHECK_EQ(machine.device->pending(), 0);
    memory.swap_out();
  });
}

// Or what was marked would look as if its copy had gone wrong, which the next swap-in refuses.
TEST(what_was_marked_of_a_piece_is_digested_before_it_is_looked_at) {
  for_schedules(50, [](std::uint64_t seed) {
    SteppedMachine machine(seed, 1);
    ModelMemory memory(machine.faulty, small_page, small_page, 2);
    const RegionPtr region = memory.add_region(Tag::weights, small_page, -1);
    memory.adopt_image(*region);
    const std::vector<PagePtr> pages{machine.pool.page(machine.pool.acquire(1, 1).front())};
    memory.swap_in(pages);
    std::memset(reinterpret_cast<void*>(region->address() + 64), 7, 11);
    memory.mark_written(*region, {{64, 74}});
    CHECK_EQ(memory.swap_out().unmarked_bytes, small_page);
    memory.swap_in(pages);
    CHECK_EQ(machine.device->pending(), 0);
    memory.swap_out();
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
    for (const SwapReport& report : {in, out}) {
      CHECK(report.moving_ns >= static_cast<std::int64_t>(report.copied_bytes / 16));
      CHECK(report.moving_ns <= report.copy_ns);
    }
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

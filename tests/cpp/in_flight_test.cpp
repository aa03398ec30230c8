// Work that is in flight and cannot be waited for, because the driver refuses to wait: nothing that
// it touches is unmapped, unpinned or granted to anybody, also when its owner goes.
#include "image/run_digests.h"
#include "in_flight_bench.h"
#include "model_bench.h"
#include "transfer/scrub.h"

using namespace gpupool;

namespace {

// A model of one region of two pages whose weights are in its image.
struct Loaded {
  explicit Loaded(Standstill& scene)
      : memory(std::make_unique<ModelMemory>(scene.driver, page_bytes, page_bytes / 2, 1)),
        region(memory->add_region(Tag::weights, 2 * page_bytes, -1)) {
    memory->adopt_image(*region);
  }
  std::unique_ptr<ModelMemory> memory;
  RegionPtr region;
};

}  // namespace

TEST(a_model_whose_swap_in_failed_keeps_what_its_copies_touch) {
  for (const bool region_kept : {false, true}) {
    Standstill scene;
    std::optional<Loaded> model(scene);
    scene.hold_at = DriverCall::copy_to_device_digest;
    scene.plan->arm_call(DriverCall::copy_to_device, 3, 1, Status::out_of_memory);
    scene.refuse_to_wait();
    CHECK_THROWS(DriverError, model->memory->swap_in(scene.acquire(1, 2)));
    CHECK(model->memory->torn());
    model->memory.reset();
    if (!region_kept) model.reset();
    scene.pool->give_back_all(1);
    scene.check_kept(2);
  }
}

TEST(a_model_whose_swap_out_failed_keeps_what_its_copies_touch) {
  Standstill scene;
  std::optional<Loaded> model(scene);
  scene.held_stream = 1;  // the one that copies out
  model->memory->swap_in(scene.acquire(1, 2));
  model->memory->mark_written(*model->region, {{0, 2 * page_bytes}});
  scene.hold_at = DriverCall::digest;
  scene.plan->arm_call(DriverCall::copy_to_host, 3, 1, Status::out_of_memory);
  scene.plan->arm_call(DriverCall::stream_synchronize, 1, FaultPlan::every_call, Status::unknown);
  CHECK_THROWS(DriverError, model->memory->swap_out());
  CHECK(model->memory->resident());
  scene.refuse_to_wait();
  model.reset();
  scene.pool->give_back_all(1);
  scene.check_kept(2);
}

// Of which a part has gone, so that nothing but its own copies is in flight.
TEST(a_model_that_failed_to_leave_in_parts_keeps_what_its_copies_touch) {
  Standstill scene;
  std::optional<Loaded> model(scene);
  const RegionPtr written = model->memory->add_region(Tag::runtime, 2 * page_bytes, -1);
  scene.held_stream = 1;  // the one that copies out
  model->memory->swap_in(scene.acquire(1, 4));
  model->memory->mark_written(*written, {{0, 2 * page_bytes}});
  CHECK_EQ(model->memory->drain(0).size(), 2);
  const RegionPtr gone = model->region;  // whose image may go, and stays for what is counted here
  scene.hold_at = DriverCall::digest;
  scene.plan->arm_call(DriverCall::stream_synchronize, 1, FaultPlan::every_call, Status::unknown);
  CHECK_THROWS(DriverError, model->memory->swap_out());
  CHECK(model->memory->torn());
  scene.plan->disarm();
  scene.refuse_to_wait();
  // The stream that copies in answers, which nothing is in flight on.
  scene.plan->arm_call(DriverCall::stream_synchronize, 2, FaultPlan::every_call, Status::unknown);
  model.reset();
  scene.pool->give_back_all(1);
  scene.check_kept(2);
}

// That its own streams have ended says nothing about them.
TEST(a_resident_model_keeps_what_kernels_of_others_touch) {
  for (const bool streams_answer : {false, true}) {
    Standstill scene;
    std::optional<Loaded> model(scene);
    model->memory->swap_in(scene.acquire(1, 2));
    const DevicePtr address = model->region->address();
    StreamHandle compute = nullptr;
    CHECK_OK(scene.device->stream_create(&compute));
    CHECK_OK(scene.device->hold(compute, &scene.hold));
    CHECK_OK(scene.device->launch(compute, {{address, page_bytes}}, [] {}));
    scene.refuse_to_wait();
    if (streams_answer) {
      scene.plan->arm_call(DriverCall::stream_synchronize, 1, 0, Status::out_of_memory);
    }
    model.reset();
    scene.pool->give_back_all(1);
    scene.check_kept(2);
  }
}

// As above, but only one wait fails: the device is waited for and everything goes back.
TEST(a_single_wait_that_fails_keeps_nothing) {
  for (const bool resident : {false, true}) {
    Standstill scene;
    std::optional<Loaded> model(scene);
    if (resident) {
      model->memory->swap_in(scene.acquire(1, 2));
      StreamHandle compute = nullptr;
      CHECK_OK(scene.device->stream_create(&compute));
      CHECK_OK(scene.device->launch(compute, {{model->region->address(), page_bytes}}, [] {}));
      scene.plan->arm_call(DriverCall::context_synchronize, 1, 1, Status::out_of_memory);
    } else {
      scene.plan->arm_call(DriverCall::copy_to_device, 3, 1, Status::out_of_memory);
      scene.plan->arm_call(DriverCall::stream_synchronize, 1, FaultPlan::every_call,
                           Status::out_of_memory);
      CHECK_THROWS(DriverError, model->memory->swap_in(scene.acquire(1, 2)));
    }
    model.reset();
    scene.plan->disarm();
    CHECK_OK(scene.device->context_synchronize());
    CHECK_EQ(scene.ledger->held().mappings, 0);
    CHECK_EQ(scene.ledger->held().registrations, 0);
    CHECK_EQ(scene.ledger->held().reservations, 0);
    scene.pool->give_back_all(1);
    CHECK_EQ(scene.pool->free_pages(), standstill_pages);
  }
}

TEST(a_scrubber_keeps_what_its_fill_touches) {
  for (const bool owned : {false, true}) {
    Standstill scene;
    scene.pool->create_ahead(2);
    {
      Scrubber scrubber(scene.driver, scene.pool, 2);
      scene.hold_at = DriverCall::fill;
      scene.refuse_to_wait();
      if (owned) {
        const auto held = scene.pool->acquire(1, 2);
        CHECK_THROWS(DriverError, scrubber.scrub_owned(1, held));
      } else {
        CHECK_THROWS(DriverError, scrubber.scrub_free());
      }
      CHECK_EQ(scene.pool->statistics().withheld, 2);
    }
    scene.check_kept(2);
  }
}

TEST(a_scrubber_that_can_wait_for_the_device_keeps_nothing) {
  Standstill scene;
  scene.pool->create_ahead(2);
  {
    Scrubber scrubber(scene.driver, scene.pool, 2);
    scene.plan->arm_call(DriverCall::stream_synchronize, 1, 3, Status::out_of_memory);
    CHECK_THROWS(DriverError, scrubber.scrub_free());
    CHECK_EQ(scene.pool->statistics().withheld, 2);
  }
  CHECK_EQ(scene.plan->injected(DriverCall::stream_synchronize), 3);
  CHECK_EQ(scene.ledger->held().mappings, 0);
}

TEST(digests_of_runs_keep_what_they_are_written_to) {
  Standstill scene;
  const auto place = std::make_shared<const Reservation>(scene.driver, page_bytes);
  Mapping mapping(scene.driver, place, scene.acquire(1, 1));
  mapping.map();
  StreamHandle stream = nullptr;
  CHECK_OK(scene.driver->stream_create(&stream));
  CHECK_OK(scene.driver->fill(place->address(), 0, page_bytes, stream));
  CHECK_OK(scene.driver->stream_synchronize(stream));
  {
    RunDigests digests(scene.driver);
    scene.hold_at = DriverCall::digest_runs;
    const DeviceRun runs[] = {{place->address(), 64}, {place->address() + 128, 64}};
    digests.enqueue(runs, stream);
    scene.refuse_to_wait();
  }
  scene.plan->disarm();
  CHECK_EQ(scene.taken_too_early, 0);
  CHECK(scene.device->pending() > 0);
  scene.hold.reset();
  CHECK_OK(scene.driver->stream_synchronize(stream));
  CHECK_OK(scene.driver->stream_destroy(stream));
}

TEST(a_window_has_two_chunks_in_flight) {
  Standstill scene;
  const auto place = std::make_shared<const Reservation>(scene.driver, page_bytes);
  Mapping mapping(scene.driver, place, scene.acquire(1, 1));
  mapping.map();
  const HostMemory source(scene.driver, -1, page_bytes);
  CopyLanes lanes(scene.driver, 4096, 1);
  const CopyLanes::Window window(scene.driver, lanes, {});
  CHECK_OK(scene.device->hold(scene.hooked->streams.at(0), &scene.hold));
  for (int i = 0; i < 2; ++i) lanes.to_device(place->address(), source.data(), 4096, nullptr);
  // The third waits for the first, and nothing lets that run.
  CHECK_THROWS(DriverError, lanes.to_device(place->address(), source.data(), 1, nullptr));
  scene.hold.reset();
  lanes.to_device(place->address(), source.data(), 1, nullptr);
  lanes.synchronize();
}

TEST(calls_of_one_kind_fail_when_they_are_told_to) {
  Standstill scene;
  std::size_t bytes = 0, free_bytes = 0;
  PageHandle page = 0;
  scene.plan->arm_call(DriverCall::page_granularity, 2, 2, Status::not_supported);
  scene.plan->arm_call(DriverCall::page_release, 1, FaultPlan::every_call, Status::unknown);
  const auto ask = [&] { return scene.driver->page_granularity(&bytes); };
  CHECK_OK(ask());
  CHECK_OK(scene.driver->memory_info(&free_bytes, &bytes));
  CHECK_EQ(ask(), Status::not_supported);
  CHECK_EQ(ask(), Status::not_supported);
  CHECK_OK(ask());
  CHECK_OK(scene.driver->page_create(&page, page_bytes));
  for (int i = 0; i < 3; ++i) CHECK_EQ(scene.driver->page_release(page), Status::unknown);
  CHECK_EQ(scene.plan->injected(), 5);
  scene.plan->disarm();
  CHECK_OK(scene.driver->page_release(page));
}

// Copy streams, events and windows of copies under many stepped schedules. One program with
// schedules_test.cpp.
#include "stepped_models.h"
#include "transfer/lanes.h"

using namespace gpupool;

namespace {

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

TEST(a_window_lets_two_chunks_be_in_flight) {
  for_schedules(200, [](std::uint64_t seed) {
    Copies copies(seed);
    CopyLanes lanes(copies.device, 100, 2);
    const CopyLanes::Window window(copies.device, lanes, std::stop_source().get_token());
    for (std::size_t at = 0; at < small_page; at += 64) {
      lanes.to_device(copies.base() + at, copies.host.data() + at, 64, nullptr);
    }
    CHECK(copies.device->pending() <= 8);  // two copies of each stream and an event behind each
    lanes.synchronize();
    CHECK(all_are(copies.on_device(), 1));
  });
}

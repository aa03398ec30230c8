// Batches of spans on copy streams: they add up to the whole, in calls of bounded size.
#include <random>

#include "batch_bench.h"
#include "driver/fault.h"
#include "observed_bench.h"
#include "transfer/transfer.h"

using namespace gpupool;

namespace {

// Remembers of each batch how many copies and bytes it has.
class Calls final : public Driver {
 public:
  explicit Calls(DriverPtr inner) : inner_(std::move(inner)) {}
#define FORWARD(name, params, args, needs_context)                                  \
  Status name params noexcept override {                                            \
    std::apply([&](auto... a) { note(DriverCall::name, a...); }, std::tuple args);  \
    return DriverCall::name == without ? Status::not_supported : inner_->name args; \
  }
  GPUPOOL_DRIVER_CALLS(FORWARD)
#undef FORWARD
  std::int64_t now_ns() const noexcept override { return inner_->now_ns(); }
  DeviceKind kind() const noexcept override { return inner_->kind(); }
  int ordinal() const noexcept override { return inner_->ordinal(); }

  std::vector<std::vector<std::size_t>> batches;  // the sizes of each call's copies
  std::map<DriverCall, int> made;
  DriverCall without = DriverCall::page_granularity;

 private:
  template <typename... A>
  void note(DriverCall call, A...) {
    ++made[call];
  }
  template <typename To, typename From>
  void note(DriverCall call, To, From, const std::size_t* sizes, std::size_t count, StreamHandle) {
    ++made[call];
    batches.emplace_back(sizes, sizes + count);
  }
  DriverPtr inner_;
};

struct Spans : Bench {
  explicit Spans(DriverPtr driver = open_test_driver())
      : Bench(std::move(driver)), base(mapped(2)), other(mapped(2)) {
    CHECK_OK((*this)->fill(base, 0, 2 * page_bytes, stream()));
    CHECK_OK((*this)->fill(other, 0, 2 * page_bytes, stream()));
    CHECK_OK((*this)->stream_synchronize(stream()));
  }
  // Pieces of the staging memory, in order and without gaps, scattered over the device.
  void cut(std::uint64_t seed, std::size_t count, std::size_t most) {
    std::mt19937_64 random(seed);
    whole = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t bytes = random() % (most + 1);
      spans.push_back({base + whole, staging() + whole, bytes});
      whole += bytes;
    }
    std::shuffle(spans.begin(), spans.end(), random);
    content = pattern(seed, whole);
  }
  void check_round_trip(std::size_t chunk) {
    std::copy(content.begin(), content.end(), reinterpret_cast<std::uint8_t*>(staging()));
    CopyStream copies(driver(), chunk);
    copies.to_device(spans);
    copies.synchronize();
    CHECK(read(base, whole) == content);
    CHECK(all_are(read(base + whole, 2 * page_bytes - whole), 0));
    std::fill_n(staging(), whole + 1, std::byte{0});
    copies.to_host(spans);
    copies.synchronize();
    CHECK(std::equal(content.begin(), content.end(),
                     reinterpret_cast<const std::uint8_t*>(staging())));
    CHECK_EQ(staging()[whole], std::byte{0});
    copies.fill(base, 0, 2 * page_bytes);
    copies.synchronize();
  }
  std::vector<CopySpan> spans;
  Bytes content;
  std::size_t whole = 0;
  DevicePtr base, other;
};

}  // namespace

TEST(batches_add_up_to_the_whole) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    for (const std::size_t chunk : {std::size_t{1000}, std::size_t{65536}, 4 * page_bytes}) {
      Spans all;
      all.cut(seed, 300, 5000);
      all.check_round_trip(chunk);
    }
  }
}

TEST(a_call_has_bounded_copies_and_bytes) {
  constexpr std::size_t most = CopyStream::batch_spans_max;
  for (const std::size_t count : {most - 1, most, most + 1, 3 * most}) {
    for (const std::size_t chunk : {std::size_t{500}, std::size_t{700}, mib}) {
      const auto calls = std::make_shared<Calls>(open_test_driver());
      Spans all(calls);
      all.cut(count, count, 700);
      all.check_round_trip(chunk);
      CHECK_EQ(calls->made[DriverCall::copy_batch_to_device],
               calls->made[DriverCall::copy_batch_to_host]);
      std::size_t bytes = 0;
      for (const auto& sizes : calls->batches) {
        CHECK(!sizes.empty() && sizes.size() <= most);
        const std::size_t together = std::accumulate(sizes.begin(), sizes.end(), std::size_t{0});
        CHECK(together <= chunk);
        CHECK(std::count(sizes.begin(), sizes.end(), std::size_t{0}) == 0);
        bytes += together;
      }
      CHECK_EQ(bytes, 2 * all.whole);
      // No more calls than it takes: two that follow each other would not have fitted into one.
      for (std::size_t i = 1; i < calls->batches.size(); ++i) {
        if (i == calls->batches.size() / 2) continue;  // another direction
        const auto &before = calls->batches[i - 1], &after = calls->batches[i];
        CHECK(before.size() == most ||
              std::accumulate(before.begin(), before.end(), after.front()) > chunk);
      }
    }
  }
}

TEST(only_what_is_longer_than_a_chunk_is_cut) {
  const auto calls = std::make_shared<Calls>(open_test_driver());
  Spans all(calls);
  const auto at = [&](std::size_t offset, std::size_t bytes) {
    return CopySpan{all.base + offset, all.staging() + offset, bytes};
  };
  CopyStream copies(all.driver(), 1000);
  copies.to_device(std::vector{at(0, 600), at(1000, 600), at(2000, 400), at(3000, 0),
                               at(4000, 2500), at(8000, 500), at(9000, 1)});
  copies.synchronize();
  CHECK(calls->batches ==
        std::vector<std::vector<std::size_t>>{{600}, {600, 400}, {1000}, {1000}, {500, 500}, {1}});
}

TEST(nothing_is_a_batch_of_no_calls) {
  const auto calls = std::make_shared<Calls>(open_test_driver());
  Spans all(calls);
  CopyStream copies(all.driver(), 1000);
  copies.to_device(std::vector<CopySpan>());
  copies.to_host(std::vector<CopySpan>{{all.base, all.staging(), 0}, {0, nullptr, 0}});
  copies.synchronize();
  CHECK(calls->batches.empty());
}

TEST(after_an_error_what_was_asked_before_is_still_copied) {
  const auto plan = std::make_shared<FaultPlan>();
  Spans all(with_faults(open_test_driver(), plan));
  all.spans = {{all.base, all.staging(), 1000}, {all.base + 4096, all.staging() + 4096, 1000}};
  std::fill_n(all.staging(), 8192, std::byte{5});
  CopyStream copies(all.driver(), 1000);
  plan->arm(2, Status::unknown, false);
  CHECK_THROWS(DriverError, copies.to_device(all.spans));
  CHECK_EQ(plan->injected(DriverCall::copy_batch_to_device), 1);
  copies.synchronize();
  CHECK(all_are(all.read(all.base, 1000), 5));
  CHECK(all_are(all.read(all.base + 4096, 1000), 0));
}

TEST(a_driver_without_batches_says_so) {
  const auto calls = std::make_shared<Calls>(open_test_driver());
  Spans all(calls);
  all.cut(1, 10, 500);
  CopyStream copies(all.driver(), mib);
  for (const DriverCall without :
       {DriverCall::copy_batch_to_device, DriverCall::copy_batch_to_host}) {
    calls->without = without;
    calls->made.clear();
    const bool in = without == DriverCall::copy_batch_to_device;
    try {
      in ? copies.to_device(all.spans) : copies.to_host(all.spans);
      check::fail(__FILE__, __LINE__, "nothing was thrown");
    } catch (const DriverError& error) {
      CHECK_EQ(error.status(), Status::not_supported);
      CHECK_EQ(std::string(error.call()), driver_call_names[static_cast<std::size_t>(without)]);
    }
    CHECK_EQ(calls->made[without], 1);
    CHECK_EQ(calls->made[in ? DriverCall::copy_to_device : DriverCall::copy_to_host], 0);
    in ? copies.to_host(all.spans) : copies.to_device(all.spans);
  }
  copies.synchronize();
}

TEST(a_batch_is_one_slice_of_all_its_bytes) {
  Observed observed;
  Spans all(observed.driver);
  all.cut(3, 100, 300);
  const DriverStatistics before = observed.observer->statistics();
  const auto trace = observed.start();
  CopyStream copies(observed.driver, mib);
  copies.to_device(all.spans);
  copies.to_host(all.spans);
  copies.synchronize();
  observed.stop(*trace);
  check_well_formed(*trace);
  for (const DriverCall call : {DriverCall::copy_batch_to_device, DriverCall::copy_batch_to_host}) {
    std::map<TraceEvent::Kind, int> slices;
    for (const TraceEvent& event : trace->events()) {
      if (event.call != call || event.kind == TraceEvent::Kind::span) continue;
      ++slices[event.kind];
      CHECK_EQ(event.bytes, all.whole);
      CHECK_EQ(event.status, 0);
    }
    CHECK_EQ(slices[TraceEvent::Kind::call], 1);
    CHECK_EQ(slices[TraceEvent::Kind::ran], 1);
    CHECK_EQ(slices.size(), 2);
  }
  const DriverStatistics after = observed.observer->statistics();
  CHECK_EQ(after.to_device_bytes - before.to_device_bytes, all.whole);
  CHECK_EQ(after.to_host_bytes - before.to_host_bytes, all.whole);
}

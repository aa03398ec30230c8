// What an observer counts, and what it shows of the time.
#include <unistd.h>

#include <set>

#include "driver/host_ops.h"
#include "ledger.h"
#include "observed_bench.h"

using namespace gpupool;

namespace {

// Counts what its caller asks for and is told.
class Tally final : public Driver {
 public:
  explicit Tally(DriverPtr inner) : inner_(std::move(inner)) {}
#define TALLY(name, params, args, needs_context)                     \
  Status name params noexcept override {                             \
    const Status status = inner_->name args;                         \
    ++counts[static_cast<std::size_t>(DriverCall::name)].calls;      \
    if (status != Status::success && status != Status::not_ready)    \
      ++counts[static_cast<std::size_t>(DriverCall::name)].failures; \
    return status;                                                   \
  }
  GPUPOOL_DRIVER_CALLS(TALLY)
#undef TALLY
  std::int64_t now_ns() const noexcept override { return inner_->now_ns(); }
  DeviceKind kind() const noexcept override { return inner_->kind(); }
  int ordinal() const noexcept override { return inner_->ordinal(); }

  std::array<CallCount, std::size(driver_call_names)> counts{};

 private:
  DriverPtr inner_;
};

// Random calls, right and wrong, and the amounts that they should come to.
struct Drawn {
  Drawn(Driver& on, std::uint64_t seed) : driver(on), random(seed) {}
  void step() {
    const std::size_t bytes = page_bytes * (1 + random.below(2));
    switch (random.below(14)) {
      case 0: {
        PageHandle page = 0;
        if (ok(driver.page_create(&page, bytes))) pages.push_back({page, bytes}), ++now.pages;
        break;
      }
      case 1: {
        if (pages.empty()) break;
        int fd = -1;
        PageHandle page = 0;
        if (ok(driver.page_export(&fd, one_of(pages).first))) {
          if (ok(driver.page_import(&page, fd))) imported.push_back(page), ++now.pages;
          close(fd);
        }
        break;
      }
      case 2:
        if (!imported.empty() && ok(driver.page_release(imported.back()))) {
          imported.pop_back();
          --now.pages;
        }
        break;
      case 3: {
        DevicePtr address = 0;
        if (ok(driver.address_reserve(&address, 2 * page_bytes))) {
          ranges[address] = 0;
          now.reserved_bytes += 2 * page_bytes;
        }
        break;
      }
      case 4:
        for (auto& [address, mapped] : ranges) {
          if (mapped != 0 || pages.empty()) continue;
          const auto [page, size] = one_of(pages);
          if (ok(driver.map(address, size, page))) mapped = size, now.mapped_bytes += size;
          static_cast<void>(driver.set_access(address, size));
          break;
        }
        break;
      case 5:
        for (auto& [address, mapped] : ranges) {
          if (mapped == 0 || !ok(driver.context_synchronize())) continue;
          if (ok(driver.unmap(address, mapped))) now.mapped_bytes -= mapped, mapped = 0;
          break;
        }
        break;
      case 6:
        if (!ranges.empty() && ok(driver.address_free(ranges.begin()->first, 2 * page_bytes))) {
          ranges.erase(ranges.begin());  // refused while something is mapped
          now.reserved_bytes -= 2 * page_bytes;
        }
        break;
      case 7: {
        StreamHandle stream = nullptr;
        if (streams.size() < 4 && ok(driver.stream_create(&stream))) {
          streams.push_back(stream), ++now.streams;
        }
        break;
      }
      case 8:
        if (!streams.empty() && ok(driver.stream_destroy(streams.back()))) {
          streams.pop_back(), --now.streams;
        }
        break;
      case 9: {
        EventHandle event = nullptr;
        if (ok(driver.event_create(&event))) events.push_back(event), ++now.events;
        break;
      }
      case 10:
        if (!events.empty() && ok(driver.event_destroy(events.back()))) {
          events.pop_back(), --now.events;
        }
        break;
      case 11: {
        const std::size_t at = random.below(4);
        if (ok(driver.host_register(memory[at].data(), 4096))) {
          CHECK(registered.insert(at).second);
          now.registered_bytes += 4096;
        }
        break;
      }
      case 12: {
        const std::size_t at = random.below(4);
        if (!ok(driver.context_synchronize())) break;  // copies may be under way
        if (ok(driver.host_unregister(memory[at].data()))) {
          CHECK_EQ(registered.erase(at), 1);
          now.registered_bytes -= 4096;
        }
        break;
      }
      default: work();
    }
  }
  void work() {
    if (streams.empty()) return;
    // Each stream has bytes of its own, so that none meets another's.
    const std::size_t own = random.below(streams.size());
    const StreamHandle stream = streams[own];
    if (!events.empty()) {
      static_cast<void>(driver.event_record(one_of(events), stream));
      static_cast<void>(driver.stream_wait_event(stream, one_of(events)));
      static_cast<void>(driver.event_query(one_of(events)));
    }
    for (const auto& [range, mapped] : ranges) {
      const DevicePtr address = range + own * 4096;
      const std::size_t bytes = 1 + random.below(4096);
      const bool there = ok(driver.copy_to_device(address, memory[own].data(), bytes, stream));
      if (there) now.to_device_bytes += bytes;
      if (ok(driver.copy_to_host(memory[own].data(), address, bytes, stream))) {
        now.to_host_bytes += bytes;
      }
      if (ok(driver.fill(address, 3, bytes, stream))) now.filled_bytes += bytes;
      const DevicePtr device[] = {address, address + bytes};
      void* const host[] = {memory[own].data(), memory[own].data() + bytes};
      const std::size_t sizes[] = {bytes, 4096 - bytes}, n = bytes < 4096 ? 2 : 1;
      if (ok(driver.copy_batch_to_device(device, host, sizes, n, stream))) {
        now.to_device_bytes += 4096;
      }
      if (ok(driver.copy_batch_to_host(host, device, sizes, n, stream))) now.to_host_bytes += 4096;
      // A kernel that touches what is not there is a fault of the device, not of the call.
      if (!there) continue;
      auto* const sums = reinterpret_cast<std::uint64_t*>(memory[own].data());
      if (ok(driver.digest(address, bytes, sums, stream))) now.digested_bytes += bytes;
      // A copy that is under way may still bring something else to where the table is.
      if (!ok(driver.stream_synchronize(stream))) continue;
      auto* const runs = reinterpret_cast<DeviceRun*>(memory[own].data() + 2048);
      runs[0] = {address, bytes};
      runs[1] = {address + bytes - 1, 1};
      if (ok(driver.digest_runs(runs, 2, sums, stream))) now.digested_bytes += bytes + 1;
      if (ok(driver.copy_to_device_digest(address, memory[own].data() + 8, 64, sums, stream))) {
        now.to_device_bytes += 64;
        now.digested_bytes += 64;
      }
    }
    if (random.below(4) == 0) static_cast<void>(driver.stream_synchronize(stream));
  }
  void end() {
    CHECK_OK(driver.context_synchronize());
    for (auto& [address, mapped] : ranges) {
      if (mapped != 0) CHECK_OK(driver.unmap(address, mapped));
      CHECK_OK(driver.address_free(address, 2 * page_bytes));
    }
    for (const auto& [page, bytes] : pages) CHECK_OK(driver.page_release(page));
    for (const PageHandle page : imported) CHECK_OK(driver.page_release(page));
    for (const StreamHandle stream : streams) CHECK_OK(driver.stream_destroy(stream));
    for (const EventHandle event : events) CHECK_OK(driver.event_destroy(event));
    for (const std::size_t at : registered) CHECK_OK(driver.host_unregister(memory[at].data()));
    now.pages = now.reserved_bytes = now.mapped_bytes = now.registered_bytes = now.streams =
        now.events = 0;
  }
  static bool ok(Status status) { return status == Status::success; }
  template <typename T>
  T& one_of(std::vector<T>& all) {
    return all[random.below(all.size())];
  }

  Driver& driver;
  host::Random random;
  DriverStatistics now;  // its calls stay empty
  std::vector<std::pair<PageHandle, std::size_t>> pages;
  std::vector<PageHandle> imported;
  std::map<DevicePtr, std::size_t> ranges;  // address -> bytes mapped at its begin
  std::vector<StreamHandle> streams;
  std::vector<EventHandle> events;
  std::set<std::size_t> registered;
  struct alignas(4096) Memory : std::array<std::byte, 4096> {};
  std::vector<Memory> memory{4};
};

void check_counts(Observed& observed, const Tally& tally, const DriverStatistics& amounts) {
  DriverStatistics seen = observed.observer->statistics();
  for (std::size_t i = 0; i < seen.calls.size(); ++i) {
    CHECK_EQ(seen.calls[i].calls, tally.counts[i].calls);
    CHECK_EQ(seen.calls[i].failures, tally.counts[i].failures);
    CHECK(seen.calls[i].calls > 0 || seen.calls[i].ns == 0);
  }
  seen.calls = {};
  CHECK(seen == amounts);
}

}  // namespace

TEST(counters_equal_an_independent_count) {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    const auto ledger = std::make_shared<Ledger>(open_bare_test_driver());
    const auto plan = std::make_shared<FaultPlan>();
    {
      Observed observed(with_faults(ledger, plan));
      const auto trace = seed % 2 == 0 ? observed.start() : nullptr;
      Tally tally(observed.driver);
      Drawn drawn(tally, seed);
      for (int i = 0; i < 600; ++i) {
        // Some faults meet what the observer calls for itself: nobody else may notice.
        if (i % 7 == 0) plan->arm(1 + drawn.random.below(5), Status::unknown, false, true);
        drawn.step();
        plan->disarm();
        if (i % 20 == 0) check_counts(observed, tally, drawn.now);
      }
      drawn.end();
      check_counts(observed, tally, drawn.now);
      if (trace) {
        observed.stop(*trace);
        check_well_formed(*trace);
      }
    }
    // The observer's own events are gone too, but for those whose destruction was failed: none,
    // since no plan is armed then.
    CHECK(ledger->held() == Holdings{});
  }
}

TEST(amounts_return_to_zero_when_models_close) {
  const auto ledger = std::make_shared<Ledger>(open_bare_test_driver());
  std::shared_ptr<Observer> observer;
  {
    Observed observed(ledger);
    observer = observed.observer;
    const auto trace = observed.start();
    PagePool pool(observed.driver, 4 * page_bytes, page_bytes);
    ModelMemory memory(observed.driver, page_bytes, mib);
    const RegionPtr region = memory.add_region(Tag::weights, 2 * page_bytes, -1);
    std::vector<PagePtr> pages;
    for (const PageId id : pool.acquire(1, 2)) pages.push_back(pool.page(id));
    memory.swap_in(std::move(pages));
    const DriverStatistics now = observer->statistics();
    CHECK_EQ(now.pages, 2);
    CHECK_EQ(now.mapped_bytes, 2 * page_bytes);
    CHECK_EQ(now.reserved_bytes, 2 * page_bytes);
    CHECK_EQ(now.registered_bytes, 2 * page_bytes);
    CHECK_EQ(now.streams, 3);  // two in, one out
    CHECK_EQ(now.filled_bytes, 2 * page_bytes);
    CHECK_EQ(now.to_device_bytes, 0);
    memory.swap_out();
    CHECK_EQ(observer->statistics().mapped_bytes, 0);
    CHECK_EQ(observer->statistics().to_host_bytes, 2 * page_bytes);
  }
  const DriverStatistics end = observer->statistics();
  CHECK_EQ(end.pages + end.mapped_bytes + end.reserved_bytes + end.registered_bytes, 0);
  CHECK_EQ(end.streams + end.events, 0);
  CHECK(ledger->held() == Holdings{});
  CHECK(!observer->tracing());
  CHECK_THROWS(UsageError, observer->start(std::make_shared<Trace>()));
}

// Two small models and a pool over a driver that can be made to fail, with the content that each
// model should have. Content is looked at in a few places, so that thousands of worlds take a
// minute.
#pragma once

#include <array>
#include <optional>

#include "bench.h"
#include "hooked.h"
#include "ledger.h"
#include "memory/memory.h"
#include "swap/swap.h"
#include "transfer/scrub.h"

namespace gpupool {

inline constexpr std::size_t world_pages = 8;

// A stream and host memory of the test's own, on the driver beneath, that never fails.
class Probe {
 public:
  explicit Probe(DriverPtr driver) : driver_(std::move(driver)) {
    CHECK_OK(driver_->host_register(memory_.data(), memory_.size()));
    CHECK_OK(driver_->stream_create(&stream_));
  }
  ~Probe() {
    static_cast<void>(driver_->stream_destroy(stream_));
    static_cast<void>(driver_->host_unregister(memory_.data()));
  }
  void write(DevicePtr address, std::uint64_t stamp) {
    std::memcpy(memory_.data(), &stamp, sizeof stamp);
    CHECK_OK(driver_->copy_to_device(address, memory_.data(), sizeof stamp, stream_));
    CHECK_OK(driver_->stream_synchronize(stream_));
  }
  std::uint64_t read(DevicePtr address) {
    std::uint64_t stamp = 0;
    CHECK_OK(driver_->copy_to_host(memory_.data(), address, sizeof stamp, stream_));
    CHECK_OK(driver_->stream_synchronize(stream_));
    std::memcpy(&stamp, memory_.data(), sizeof stamp);
    return stamp;
  }

 private:
  DriverPtr driver_;
  alignas(64) std::array<std::byte, 64> memory_{};
  StreamHandle stream_ = nullptr;
};

struct World;

class Model {
 public:
  Model(World& world, OwnerId owner);
  void add_regions();
  void swap_in(const std::stop_token& stop = {});
  void swap_out(std::size_t keep = 0, bool in_parts = false);
  void warm(std::size_t count);
  void cool(std::size_t count);
  void give_back();  // what is not mapped
  void resize(std::size_t region, std::size_t bytes);
  // Stamps in all regions, marked as written where a step would mark them.
  void write(std::uint64_t stamp);
  // Stamps in one region, which nobody marks.
  void write_unmarked(std::size_t region, std::uint64_t stamp);
  // Fills the image of a region as a loader does.
  void load(std::size_t region, std::uint64_t stamp);
  void check_content();

  World& world;
  OwnerId owner;
  ModelMemory memory;
  std::vector<RegionPtr> regions;
  std::vector<std::map<std::size_t, std::uint64_t>> expected;  // of a region: offset -> stamp
};

struct World {
  World() : probe(ledger) {
    hooked->streams.reserve(64);  // what hooks a call must not make it fail
    pool.emplace(driver, world_pages * page_bytes, page_bytes);
    a.emplace(*this, 1);
    b.emplace(*this, 2);
    a->add_regions();
    b->add_regions();
  }
  std::vector<PagePtr> acquire(OwnerId owner, std::size_t count) {
    std::vector<PagePtr> pages;
    for (const PageId id : pool->acquire(owner, count)) pages.push_back(pool->page(id));
    return pages;
  }
  // For who wants to share what stays the world's.
  std::shared_ptr<PagePool> shared_pool() {
    return {&*pool, [](PagePool*) {}};
  }
  void add_scrubber() { scrubber.emplace(driver, shared_pool(), 2); }
  std::shared_ptr<Ledger> ledger = std::make_shared<Ledger>(open_bare_test_driver());
  std::shared_ptr<FaultPlan> plan = std::make_shared<FaultPlan>();
  // What an observer calls for itself fails too.
  std::shared_ptr<Hooked> hooked = std::make_shared<Hooked>(ledger);
  DriverPtr driver = observed(with_faults(hooked, plan), WatchMode::calls);
  Probe probe;
  std::optional<PagePool> pool;
  std::optional<Model> a, b;
  std::optional<Scrubber> scrubber;
  // Whatever a scenario makes and leaves.
  std::vector<std::shared_ptr<const void>> made;
};

inline Model::Model(World& w, OwnerId o)
    : world(w),
      owner(o),
      // One of the two verifies nothing.
      memory(w.driver, page_bytes, mib / 2, 2, o == 2 ? Verify::off : Verify::always) {}

inline void Model::add_regions() {
  for (const auto& [tag, bytes] :
       {std::pair{Tag::weights, page_bytes + 4096}, std::pair{Tag::kv_cache, page_bytes},
        std::pair{Tag::runtime, std::size_t{4096}}}) {
    regions.push_back(memory.add_region(tag, bytes, -1, 3 * page_bytes));
    expected.emplace_back();
    for (const std::size_t at : {std::size_t{0}, std::size_t{2048}, bytes - 8}) {
      expected.back()[at] = 0;
    }
    // Behind its end and up to the end of its last page there are zeros.
    if (regions.back()->span_bytes() > bytes) expected.back()[bytes] = 0;
  }
}

inline void Model::swap_in(const std::stop_token& stop) {
  auto pages = world.acquire(owner, memory.pages_needed() - memory.warm_pages());
  try {
    memory.swap_in(std::move(pages), 0, stop);
  } catch (...) {
    // Its pages go to nobody else while it may still have them mapped.
    if (!memory.torn()) give_back();
    throw;
  }
}

inline void Model::swap_out(std::size_t keep, bool in_parts) {
  while (in_parts && !memory.drain(keep).empty()) give_back();
  memory.swap_out(keep);
  give_back();
}

inline void Model::warm(std::size_t count) {
  auto pages = world.acquire(owner, count);
  try {
    memory.warm(std::move(pages));
  } catch (...) {
    if (!memory.torn()) give_back();
    throw;
  }
}

inline void Model::cool(std::size_t count) {
  CHECK_EQ(memory.cool(count).size(), count);
  give_back();
}

inline void Model::give_back() {
  std::vector<PageId> gone;
  for (const PageId id : world.pool->owned(owner)) {
    const PagePtr page = world.pool->page(id);
    const bool mapped = std::any_of(regions.begin(), regions.end(), [&](const RegionPtr& region) {
      const std::vector<PagePtr> pages = memory.mapped_pages(*region);
      return std::count(pages.begin(), pages.end(), page) > 0;
    });
    if (!mapped) gone.push_back(id);
  }
  world.pool->give_back(owner, gone);
}

// Pages that it could not get rid of again stay the model's until it leaves.
inline void Model::resize(std::size_t index, std::size_t bytes) {
  Region& region = *regions[index];
  const std::size_t span = (bytes + page_bytes - 1) / page_bytes * page_bytes;
  std::vector<PagePtr> more;
  if (memory.resident() && span > region.span_bytes()) {
    more = world.acquire(owner, (span - region.span_bytes()) / page_bytes);
  }
  memory.resize(region, bytes, more, 0, -1);
  auto& stamps = expected[index];
  std::erase_if(stamps, [&](const auto& stamp) { return stamp.first + 8 > bytes; });
  stamps.emplace(bytes / 8 * 8 - 8, 0);
}

inline void Model::write(std::uint64_t stamp) {
  for (std::size_t i = 0; i < regions.size(); ++i) {
    for (auto& [at, value] : expected[i]) {
      if (at >= regions[i]->bytes()) continue;
      value = ++stamp * owner;
      world.probe.write(regions[i]->address() + at, value);
      if (regions[i]->tag() != Tag::runtime) memory.mark_written(*regions[i], {{at, at + 8}});
    }
  }
}

inline void Model::write_unmarked(std::size_t index, std::uint64_t stamp) {
  for (auto& [at, value] : expected[index]) {
    if (at >= regions[index]->bytes()) continue;
    value = ++stamp * owner;
    world.probe.write(regions[index]->address() + at, value);
  }
}

inline void Model::load(std::size_t index, std::uint64_t stamp) {
  for (auto& [at, value] : expected[index]) {
    if (at >= regions[index]->bytes()) continue;
    value = ++stamp * owner;
    std::memcpy(regions[index]->image() + at, &value, sizeof value);
  }
}

inline void Model::check_content() {
  CHECK(memory.resident());
  for (std::size_t i = 0; i < regions.size(); ++i) {
    for (const auto& [at, value] : expected[i]) {
      CHECK_EQ(world.probe.read(regions[i]->address() + at), value);
    }
  }
}

}  // namespace gpupool

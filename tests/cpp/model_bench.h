// Models on a bench: regions of every kind with known content, in a pool of pages.
#pragma once

#include <map>
#include <string>

#include "bench.h"
#include "driver/fault.h"
#include "memory/memory.h"
#include "swap/swap.h"

namespace gpupool {

// A pool whose driver can be made to fail; what looks at the memory uses the driver beneath.
struct Machine {
  explicit Machine(std::size_t pages)
      : faulty(with_faults(bench.driver(), plan)), pool(faulty, pages * page_bytes, page_bytes) {}
  std::vector<PagePtr> acquire(OwnerId owner, std::size_t count) {
    std::vector<PagePtr> pages;
    for (const PageId id : pool.acquire(owner, count)) pages.push_back(pool.page(id));
    return pages;
  }
  // Every page there is, filled with `value`, as a model that keeps secrets would leave them.
  void soil(std::uint8_t value) {
    const auto pages = acquire(999, pool.free_pages());
    if (pages.empty()) return;
    const auto reservation =
        std::make_shared<const Reservation>(bench.driver(), pages.size() * page_bytes);
    Mapping mapping(bench.driver(), reservation, pages);
    mapping.map();
    CHECK_OK(bench->fill(reservation->address(), value, pages.size() * page_bytes, bench.stream()));
    CHECK_OK(bench->stream_synchronize(bench.stream()));
    mapping.unmap();
    pool.give_back_all(999);
  }
  Bench bench;
  std::shared_ptr<FaultPlan> plan = std::make_shared<FaultPlan>();
  DriverPtr faulty;
  PagePool pool;
};

// One model and what each of its regions should hold.
class Subject {
 public:
  static constexpr std::size_t chunk_bytes = mib;
  Subject(Machine& machine, OwnerId owner, Verify verify = Verify::always)
      : machine_(machine),
        owner_(owner),
        memory(machine.faulty, page_bytes, chunk_bytes, 2, verify) {}
  ~Subject() {
    machine_.plan->disarm();
    machine_.pool.give_back_all(owner_);
  }

  Region& add(Tag tag, std::size_t bytes, std::optional<int> image_fd = -1) {
    RegionPtr region = memory.add_region(tag, bytes, image_fd);
    expected.push_back(Bytes(bytes, 0));
    regions.push_back(region);
    return *region;
  }
  // Weights and KV larger than a page, a runtime smaller than one, and a workspace.
  void add_all() {
    add(Tag::weights, page_bytes + 5000);
    add(Tag::runtime, 100'000);
    add(Tag::kv_cache, 2 * page_bytes);
    add(Tag::workspace, page_bytes);
  }
  // In, on seven pages that had been somebody's: six that can be warm, three of them weights, and a
  // workspace.
  void come_on_seven_pages() {
    add(Tag::weights, 2 * page_bytes + 5000);
    add(Tag::runtime, 100'000);
    add(Tag::kv_cache, 2 * page_bytes);
    add(Tag::workspace, page_bytes);
    machine_.soil(0xC5);
    swap_in();
    write_all(1);
  }
  SwapReport swap_in() {
    auto pages = machine_.acquire(owner_, memory.pages_needed() - memory.warm_pages());
    try {
      return memory.swap_in(std::move(pages));
    } catch (...) {
      if (!memory.torn()) give_back();
      throw;
    }
  }
  SwapReport warm(std::size_t count) {
    auto pages = machine_.acquire(owner_, count);
    try {
      return memory.warm(std::move(pages));
    } catch (...) {
      if (!memory.torn()) give_back();
      throw;
    }
  }
  void cool(std::size_t count) {
    CHECK_EQ(memory.cool(count).size(), count);
    give_back();
  }
  SwapReport swap_out(std::size_t keep = 0) {
    const SwapReport report = memory.swap_out(keep);
    give_back();
    for (std::size_t i = 0; i < regions.size(); ++i) {
      if (regions[i]->image() == nullptr) expected[i].assign(expected[i].size(), 0);
    }
    return report;
  }
  // All that is not mapped.
  void give_back() {
    std::vector<PagePtr> mapped;
    for (const RegionPtr& region : regions) {
      for (const PagePtr& page : memory.mapped_pages(*region)) mapped.push_back(page);
    }
    std::vector<PageId> gone;
    for (const PageId id : machine_.pool.owned(owner_)) {
      const bool stays = std::count(mapped.begin(), mapped.end(), machine_.pool.page(id)) > 0;
      if (!stays) gone.push_back(id);
    }
    machine_.pool.give_back(owner_, gone);
  }
  // What a step does: changes bytes [begin, end) and, where that is asked for, says so.
  void write(std::size_t index, std::uint64_t seed, Run run) {
    const Bytes content = pattern(seed, run.bytes());
    machine_.bench.write(regions[index]->address() + run.begin, content);
    std::copy(content.begin(), content.end(), expected[index].begin() + run.begin);
    const Tag tag = regions[index]->tag();
    const bool tells = tag == Tag::weights || tag == Tag::kv_cache;
    if (tells && regions[index]->image() != nullptr) memory.mark_written(*regions[index], {run});
  }
  void write_all(std::uint64_t seed) {
    for (std::size_t i = 0; i < regions.size(); ++i) {
      write(i, seed + i, {0, regions[i]->bytes()});
    }
  }
  // Every byte of a resident model: its own content, then zeros to the end of the last page.
  void check_content() {
    CHECK(memory.resident());
    for (std::size_t i = 0; i < regions.size(); ++i) {
      const Bytes seen = machine_.bench.read(regions[i]->address(), regions[i]->span_bytes());
      CHECK(std::equal(expected[i].begin(), expected[i].end(), seen.begin()));
      CHECK(all_are(Bytes(seen.begin() + regions[i]->bytes(), seen.end()), 0));
    }
  }
  // No address of a model that is out has anything behind it.
  void check_out() {
    CHECK(!memory.resident() && !memory.torn());
    for (const RegionPtr& region : regions) {
      for (std::size_t at = 0; at < region->span_bytes(); at += page_bytes) {
        CHECK_EQ(machine_.bench->unmap(region->address() + at, page_bytes), Status::invalid_value);
      }
    }
  }

 private:
  Machine& machine_;
  OwnerId owner_;

 public:
  ModelMemory memory;
  std::vector<RegionPtr> regions;
  std::vector<Bytes> expected;
};

}  // namespace gpupool

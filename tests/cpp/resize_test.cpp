// Regions that grow and shrink, resident and out: addresses stay, what is gained reads as zeros,
// what remains is kept, and pages come and go exactly as they are needed.
#include <algorithm>
#include <random>

#include "model_bench.h"

using namespace gpupool;

namespace {

constexpr std::size_t most = 5 * page_bytes;

std::size_t in_pages(std::size_t bytes) { return (bytes + page_bytes - 1) / page_bytes; }

// At the end of a page, a byte before or after it, or anywhere.
std::size_t size(std::mt19937_64& random) {
  const std::size_t edge = random() % 6 * page_bytes + 1 - random() % 3;
  return random() % 2 == 0 ? 1 + random() % most : std::clamp<std::size_t>(edge, 1, most);
}

// One region on a machine, with the pages it should have.
struct Scene {
  explicit Scene(Tag region_tag = Tag::kv_cache, std::size_t bytes = page_bytes + 100)
      : tag(region_tag) {
    region = memory.add_region(tag, bytes, -1, most);
    expected.resize(bytes);
  }
  ~Scene() { machine.plan->disarm(); }
  void swap_in() { memory.swap_in(machine.acquire(1, memory.pages_needed())); }
  void swap_out() {
    memory.swap_out();
    machine.pool.give_back_all(1);
    if (tag == Tag::workspace) expected.assign(expected.size(), 0);
  }
  std::size_t resize(std::size_t bytes) {
    const std::size_t had = in_pages(region->bytes()), needs = in_pages(bytes);
    std::vector<PagePtr> more;
    if (memory.resident() && needs > had) more = machine.acquire(1, needs - had);
    const auto gone = memory.resize(*region, bytes, more, 0, -1);
    give_back(gone);
    expected.resize(bytes, 0);
    return gone.size();
  }
  void give_back(const std::vector<PagePtr>& gone) {
    for (const PageId id : machine.pool.owned(1)) {
      const PagePtr page = machine.pool.page(id);
      if (std::find(gone.begin(), gone.end(), page) != gone.end()) {
        machine.pool.give_back(1, std::vector<PageId>{id});
      }
    }
  }
  void write(std::uint64_t seed, Run run) {
    const Bytes content = pattern(seed, run.bytes());
    machine.bench.write(region->address() + run.begin, content);
    std::copy(content.begin(), content.end(),
              expected.begin() + static_cast<std::ptrdiff_t>(run.begin));
    if (tag == Tag::kv_cache || tag == Tag::weights) memory.mark_written(*region, {run});
  }
  void check() {
    CHECK_EQ(region->bytes(), expected.size());
    CHECK_EQ(region->span_bytes(), in_pages(expected.size()) * page_bytes);
    CHECK_EQ(memory.pages_needed(), in_pages(expected.size()));
    CHECK_EQ(memory.mapped_pages(*region).size(), memory.resident() ? memory.pages_needed() : 0);
    CHECK_EQ(machine.pool.owned(1).size(), memory.mapped_pages(*region).size());
    if (memory.resident())
      CHECK(machine.bench.read(region->address(), expected.size()) == expected);
  }
  Tag tag;
  Machine machine{8};
  ModelMemory memory{machine.faulty, page_bytes, mib};
  RegionPtr region;
  Bytes expected;
};

}  // namespace

TEST(weights_gained_are_saved_once_without_a_mark) {
  Scene scene(Tag::weights);
  scene.swap_in();
  scene.write(1, {0, scene.region->bytes()});
  scene.swap_out();
  scene.swap_in();
  const std::size_t before = scene.region->bytes();
  scene.resize(3 * page_bytes);
  const Bytes fresh = pattern(2, 3 * page_bytes - before);  // as a loader writes it
  scene.machine.bench.write(scene.region->address() + before, fresh);
  std::copy(fresh.begin(), fresh.end(),
            scene.expected.begin() + static_cast<std::ptrdiff_t>(before));
  scene.swap_out();
  scene.machine.soil(0x66);
  scene.swap_in();
  scene.check();
}

TEST(any_sizes_in_any_order) {
  for (const Tag tag : {Tag::weights, Tag::kv_cache, Tag::runtime, Tag::workspace}) {
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      std::mt19937_64 random(seed);
      const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
      Scene scene(tag);
      const DevicePtr address = scene.region->address();
      for (int step = 0; step < 60; ++step) {
        switch (below(4)) {
          case 0: scene.memory.resident() ? scene.swap_out() : scene.swap_in(); break;
          case 1: scene.resize(size(random)); break;
          case 2: scene.machine.soil(static_cast<std::uint8_t>(1 + below(255))); break;
          default:
            if (!scene.memory.resident()) break;
            const std::size_t begin = below(scene.expected.size());
            scene.write(random(), {begin, begin + 1 + below(scene.expected.size() - begin)});
        }
        CHECK_EQ(scene.region->address(), address);
        scene.check();
      }
    }
  }
}

TEST(clean_pages_are_not_filled_again) {
  Scene scene(Tag::kv_cache, page_bytes);
  scene.swap_in();
  const auto pages = scene.machine.acquire(1, 2);
  // Called clean and soiled: what is read behind them shows which were taken at their word.
  const auto place = std::make_shared<const Reservation>(scene.machine.bench.driver(), page_bytes);
  for (const PagePtr& page : pages) {
    Mapping mapping(scene.machine.bench.driver(), place, {page});
    mapping.map();
    scene.machine.bench.write(place->address(), Bytes(page_bytes, 9));
  }
  CHECK_THROWS(UsageError, scene.memory.resize(*scene.region, 3 * page_bytes, pages, 3, -1));
  scene.memory.resize(*scene.region, 3 * page_bytes, pages, 1, -1);
  CHECK(all_are(scene.machine.bench.read(scene.region->address() + page_bytes, page_bytes), 9));
  CHECK(all_are(scene.machine.bench.read(scene.region->address() + 2 * page_bytes, page_bytes), 0));
}

TEST(a_shrinking_region_waits_for_the_kernels_of_others) {
  Scene scene(Tag::kv_cache, 4 * page_bytes);
  scene.swap_in();
  for (int value = 1; value <= 20; ++value) {
    CHECK_OK(scene.machine.bench->fill(scene.region->address(), static_cast<std::uint8_t>(value),
                                       4 * page_bytes, scene.machine.bench.stream()));
  }
  CHECK_EQ(scene.resize(page_bytes), 3);
  scene.expected.assign(page_bytes, 20);
  scene.check();
}

TEST(what_cannot_be_is_refused_and_changes_nothing) {
  Scene scene;
  ModelMemory other(scene.machine.faulty, page_bytes, mib);
  const auto page = scene.machine.acquire(9, 1);
  const auto refused = [&](std::size_t bytes, const std::vector<PagePtr>& pages) {
    CHECK_THROWS(UsageError, scene.memory.resize(*scene.region, bytes, pages, 0, -1));
    scene.check();
  };
  for (int round = 0; round < 2; ++round) {
    refused(0, {});
    refused(most + 1, {});
    refused(page_bytes, page);
    refused(2 * page_bytes, page);                // no page more is needed
    refused(4 * page_bytes, {page[0], nullptr});  // and of those that are, one is none
    CHECK_THROWS(UsageError, other.resize(*scene.region, page_bytes, {}, 0, -1));
    if (round == 0) scene.swap_in();
  }
  refused(4 * page_bytes, page);  // one page short
}

TEST(any_call_may_fail) {
  for (const bool grows : {true, false}) {
    for (const bool persistent : {false, true}) {
      for (std::uint64_t nth = 1, injected = 1; injected > 0; ++nth) {
        Scene scene(Tag::kv_cache, 3 * page_bytes);
        scene.swap_in();
        scene.write(1, {0, 3 * page_bytes});
        const auto more = scene.machine.acquire(1, grows ? 2 : 0);
        scene.machine.plan->arm(nth, Status::out_of_memory, persistent);
        std::vector<PagePtr> gone;
        const std::size_t size = grows ? most : page_bytes + 7;
        bool failed = false;
        try {
          gone = scene.memory.resize(*scene.region, size, more, 0, -1);
        } catch (const DriverError&) {
          failed = true;
        }
        injected = scene.machine.plan->injected();
        scene.machine.plan->disarm();
        // Where only one call failed, the way back is open.
        const bool stuck =
            scene.memory.mapped_pages(*scene.region).size() > scene.memory.pages_needed();
        if (!persistent) CHECK(!stuck);
        if (failed) {
          CHECK_EQ(scene.region->bytes(), 3 * page_bytes);
          if (stuck) {
            // They are nobody else's until the model has left, and it cannot grow until then.
            CHECK_THROWS(UsageError, scene.memory.resize(*scene.region, most, more, 0, -1));
          } else {
            scene.give_back(more);
          }
        } else {
          scene.give_back(gone);
          scene.expected.resize(size, 0);
        }
        CHECK(scene.memory.resident());
        if (!stuck) scene.check();
        scene.swap_out();
        scene.machine.soil(0x42);
        scene.check();
        scene.swap_in();
        scene.check();
        scene.resize(4 * page_bytes);
        scene.resize(10);
        scene.check();
      }
    }
  }
}

TEST(a_region_grows_to_all_of_its_capacity) {
  for (const std::size_t capacity : {std::size_t{0}, page_bytes + 1}) {
    Machine machine(4);
    ModelMemory memory(machine.faulty, page_bytes, mib);
    const RegionPtr region = memory.add_region(Tag::weights, 5000, -1, capacity);
    const std::size_t most_bytes = region->capacity_bytes();
    CHECK_EQ(most_bytes, capacity == 0 ? page_bytes : 2 * page_bytes);
    CHECK_THROWS(UsageError, memory.resize(*region, most_bytes + 1, {}, 0, -1));
    memory.resize(*region, most_bytes, {}, 0, -1);
    CHECK_EQ(region->bytes(), most_bytes);
    memory.swap_in(machine.acquire(1, memory.pages_needed()));
    memory.swap_out();
    CHECK_EQ(memory.saved_bytes(*region), most_bytes);
  }
}

TEST(a_stuck_page_goes_when_the_region_shrinks) {
  Scene scene(Tag::workspace, page_bytes);
  scene.swap_in();
  const auto more = scene.machine.acquire(1, 2);
  scene.machine.plan->arm(2, Status::unknown, true);  // the second map, and then the way back
  CHECK_THROWS(DriverError, scene.memory.resize(*scene.region, 3 * page_bytes, more, 0, -1));
  scene.machine.plan->disarm();
  CHECK_EQ(scene.memory.mapped_pages(*scene.region).size(), 2);
  scene.give_back({more[1]});
  CHECK_EQ(scene.memory.resize(*scene.region, page_bytes - 1, {}, 0, -1).size(), 1);
  CHECK_EQ(scene.memory.mapped_pages(*scene.region).size(), 1);
}

TEST(the_image_grows_and_stays) {
  Scene scene(Tag::weights, 5000);
  CHECK_EQ(scene.memory.missing_image_bytes(*scene.region, 8192), 0);
  CHECK_EQ(scene.memory.missing_image_bytes(*scene.region, 8193), 4096);
  std::byte* const image = scene.region->image();
  scene.resize(most);
  CHECK_EQ(scene.memory.missing_image_bytes(*scene.region, most), 0);
  CHECK_EQ(scene.region->image(), image);
  scene.resize(1);
  CHECK_EQ(scene.memory.missing_image_bytes(*scene.region, most), 0);
  Scene workspace(Tag::workspace);
  CHECK_EQ(workspace.memory.missing_image_bytes(*workspace.region, most), 0);
}

// Memory of the device that goes bad while nobody looks: no step reads it where a model came ahead
// of use, stayed, or has pages that were called clean.
#include <random>

#include "model_bench.h"
#include "tuned_bench.h"

using namespace gpupool;

namespace {

// A model that is out.
struct Scene {
  explicit Scene(Verify verify) : model(machine, 1, verify) {
    model.come_on_seven_pages();
    model.swap_out();
    machine.soil(0x77);
  }
  // Behind everybody's back; `at` is of all that is warm, also behind the ends of regions.
  void flip(std::size_t at) {
    for (const RegionPtr& region : model.regions) {
      const std::size_t bytes = model.memory.mapped_pages(*region).size() * page_bytes;
      if (at < bytes) {
        Bytes byte = machine.bench.read(region->address() + at, 1);
        byte[0] ^= 0x10;
        machine.bench.write(region->address() + at, byte);
        return;
      }
      at -= bytes;
    }
  }
  Machine machine{9};
  Subject model;
};

constexpr std::size_t warmable = 6;

}  // namespace

TEST(a_bit_that_flips_in_what_came_ahead_is_put_right) {
  for (const std::size_t at : {std::size_t{0}, page_bytes - 1, page_bytes, 2 * page_bytes + 4999}) {
    Scene scene(Verify::always);
    scene.model.warm(2);
    scene.model.warm(1);
    scene.flip(at);
    const SwapReport report = scene.model.swap_in();
    CHECK(report.recopied_bytes > 0 && report.recopied_bytes <= Subject::chunk_bytes);
    CHECK_EQ(report.verified_bytes, 2 * page_bytes + 5000 + 100'000 + 2 * page_bytes);
    scene.model.check_content();
  }
}

// Nothing that stayed, came, went or came again is believed.
TEST(whatever_flips_while_a_model_is_out_is_not_read) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](std::size_t end) { return random() % end; };
    Scene scene(Verify::always);
    Subject& model = scene.model;
    for (int round = 0; round < 4; ++round) {
      for (std::size_t i = below(6); i > 0; --i) {
        const std::size_t warm = model.memory.warm_pages();
        switch (below(4)) {
          case 0: model.cool(below(warm + 1)); break;
          case 1: model.warm(below(warmable - warm + 1)); break;
          default:
            if (warm > 0) scene.flip(below(warm * page_bytes));
        }
      }
      model.swap_in();
      model.check_content();
      model.write(below(4), random(), {0, 1 + below(100'000)});
      model.swap_out(below(warmable + 2));
      scene.machine.soil(0x77);
    }
  }
}

TEST(a_sample_of_what_came_ahead_is_looked_at_in_turn) {
  Scene scene(Verify::sample);
  const std::size_t saved = 4 * page_bytes + 5000 + 100'000;
  std::size_t verified = 0;
  for (std::size_t turn = 0; turn < sampled_one_in; ++turn) {
    scene.model.warm(warmable);
    verified += scene.model.swap_in().verified_bytes;
    scene.model.check_content();
    scene.model.swap_out();
  }
  CHECK_EQ(verified, saved);
  Scene unlooked(Verify::off);
  unlooked.model.warm(warmable);
  CHECK_EQ(unlooked.model.swap_in().verified_bytes, 0);
}

// Where others may have the page its model is refused, and told which it is.
TEST(what_came_ahead_of_what_is_sealed_is_not_copied_over) {
  Machine machine(8);
  Tuned model(machine, 1);
  model.warm(3);  // its runtime and two pages of weights
  const std::vector<PagePtr> mapped = model.memory.mapped_pages(model.weights());
  CHECK_EQ(mapped.size(), 2);
  {
    const auto place = std::make_shared<const Reservation>(machine.bench.driver(), page_bytes);
    Mapping mapping(machine.bench.driver(), place, {mapped[1]});
    mapping.map();
    Bytes byte = machine.bench.read(place->address() + 7, 1);
    byte[0] ^= 1;
    machine.bench.write(place->address() + 7, byte);
  }
  try {
    model.swap_in();
    check::fail(__FILE__, __LINE__, "a flipped bit came in");
  } catch (const DamagedImage& error) {
    CHECK(error.pages() == std::vector<PageHandle>{mapped[1]->handle()});
  }
  CHECK_EQ(model.memory.warm_pages(), 3);
  model.cool(3);
  model.swap_in();
  model.check_content();
}

// Pages called clean that are not zeros any more: what a step reads before it writes is zeroed all
// the same, and they go where they are taken for what they are called.
TEST(clean_pages_are_believed_only_where_nobody_reads_first) {
  for (const Verify verify : {Verify::always, Verify::sample, Verify::off}) {
    for (const Tag tag :
         {Tag::weights, Tag::runtime, Tag::cudagraph, Tag::kv_cache, Tag::workspace}) {
      for (const bool ahead : {false, true}) {
        if (ahead && tag == Tag::workspace) continue;
        Machine machine(4);
        Subject model(machine, 1, verify);
        model.add(tag, 2 * page_bytes - 100);
        machine.soil(0xA5);
        const bool believed =
            verify == Verify::off || tag == Tag::kv_cache || tag == Tag::workspace;
        auto pages = machine.acquire(1, 2);
        if (ahead) {
          const SwapReport report = model.memory.warm({pages[0]}, 1);
          CHECK_EQ(report.filled_bytes, believed ? 0 : page_bytes);
          pages.erase(pages.begin());
          if (!believed) machine.bench.write(model.regions[0]->address() + 5, {1});
        }
        const SwapReport report = model.memory.swap_in(pages, pages.size());
        CHECK_EQ(report.filled_bytes, believed ? 0 : 2 * page_bytes);
        if (!believed) model.check_content();
        model.swap_out();
      }
    }
  }
}

TEST(clean_pages_are_left_for_those_who_believe_them) {
  Machine machine(4);
  Subject model(machine, 1);
  model.add(Tag::runtime, page_bytes);
  model.add(Tag::kv_cache, page_bytes);
  machine.soil(0x31);
  const auto pages = machine.acquire(1, 2);
  {
    const auto place = std::make_shared<const Reservation>(machine.bench.driver(), page_bytes);
    Mapping mapping(machine.bench.driver(), place, {pages[0]});
    mapping.map();
    machine.bench.write(place->address(), Bytes(page_bytes, 0));
  }
  CHECK_EQ(model.memory.swap_in(pages, 1).filled_bytes, page_bytes);
  model.check_content();
}

TEST(a_region_that_grows_believes_no_clean_page_that_is_read_first) {
  for (const Verify verify : {Verify::always, Verify::off}) {
    for (const Tag tag : {Tag::weights, Tag::runtime, Tag::kv_cache}) {
      Machine machine(4);
      Subject model(machine, 1, verify);
      model.regions.push_back(model.memory.add_region(tag, page_bytes, -1, 3 * page_bytes));
      model.expected.push_back(Bytes(page_bytes, 0));
      model.swap_in();
      machine.soil(0xA5);
      model.memory.resize(*model.regions[0], 3 * page_bytes, machine.acquire(1, 2), 2, -1);
      const Bytes gained =
          machine.bench.read(model.regions[0]->address() + page_bytes, 2 * page_bytes);
      CHECK(all_are(gained, verify == Verify::off || tag == Tag::kv_cache ? 0xA5 : 0));
    }
  }
}

// Zeroed is what its model left, and not what comes in the stead of what went.
TEST(what_went_is_not_zeroed_where_a_clean_page_comes) {
  Machine machine(4);
  Subject model(machine, 1);
  model.add(Tag::kv_cache, 2 * page_bytes);
  machine.soil(0xA5);
  model.swap_in();
  machine.bench.write(model.regions[0]->address(), {1, 2, 3});
  model.swap_out(2);
  model.cool(1);
  const auto pages = machine.acquire(1, 1);
  CHECK_EQ(model.memory.swap_in(pages, 1).filled_bytes, page_bytes);
  CHECK(all_are(machine.bench.read(model.regions[0]->address(), page_bytes), 0));
}

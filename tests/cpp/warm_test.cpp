// Some of a model's pages stay while it is out, or come ahead of it: nothing is copied twice, and
// nothing else than what the model had is in them.
#include <random>

#include "model_bench.h"
#include "stepped_models.h"

using namespace gpupool;

namespace {

constexpr std::size_t warmable = 6, all_pages = 7;

struct Scene {
  explicit Scene(Verify verify = Verify::always) : model(machine, 1, verify) {
    model.come_on_seven_pages();
  }
  // Whatever the model gave back is somebody else's.
  void out(std::size_t keep) {
    model.swap_out(keep);
    machine.soil(0x77);
  }
  Machine machine{all_pages + 2};
  Subject model;
};

}  // namespace

TEST(the_first_pages_stay_and_are_not_copied_again) {
  Scene scene;
  CHECK_EQ(scene.model.memory.warmable_pages(), warmable);
  for (std::size_t keep = 0; keep <= warmable + 1; ++keep) {
    scene.out(keep);
    const std::size_t warm = std::min(keep, warmable);
    CHECK_EQ(scene.model.memory.warm_pages(), warm);
    CHECK_EQ(scene.machine.pool.free_pages(), all_pages + 2 - warm);
    const SwapReport report = scene.model.swap_in();
    CHECK_EQ(report.pages, all_pages - warm);
    std::size_t saved = 0, there = 0, page = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      const std::size_t bytes = scene.model.regions[i]->bytes();
      const std::size_t pages = scene.model.regions[i]->span_bytes() / page_bytes;
      const std::size_t stayed = std::clamp(warm, page, page + pages) - page;
      saved += bytes;
      there += std::min(bytes, stayed * page_bytes);
      page += pages;
    }
    CHECK_EQ(report.copied_bytes, saved - there);
    CHECK_EQ(report.verified_bytes, saved);
    CHECK_EQ(report.recopied_bytes, 0);
    scene.model.check_content();
  }
}

TEST(pages_come_ahead_and_go_again) {
  Scene scene;
  scene.out(0);
  std::size_t copied = 0;
  for (std::size_t count = 0; count < warmable; count += 2) {
    copied += scene.model.warm(2).copied_bytes;
    CHECK_EQ(scene.model.memory.warm_pages(), count + 2);
  }
  CHECK_EQ(copied, scene.model.regions[0]->bytes() + 100'000 + 2 * page_bytes);
  CHECK_THROWS(UsageError, scene.model.warm(1));
  CHECK_EQ(scene.machine.pool.free_pages(), all_pages + 2 - warmable);
  scene.model.cool(1);
  const SwapReport report = scene.model.swap_in();
  CHECK_EQ(report.pages, 2);
  CHECK_EQ(report.copied_bytes, page_bytes);
  CHECK_EQ(report.verified_bytes, copied);  // also the rest, which may have changed since it came
  scene.model.check_content();
  CHECK_THROWS(UsageError, scene.model.memory.cool(0));
  CHECK_THROWS(UsageError, scene.model.memory.warm({}));
}

TEST(what_is_there_is_verified_once_and_when_it_is_wanted) {
  Scene scene;
  scene.out(2);
  CHECK_EQ(scene.model.warm(0).verified_bytes, 0);
  CHECK_EQ(scene.model.warm(1).verified_bytes, 5000);
  CHECK_EQ(scene.model.swap_in().verified_bytes, 2 * page_bytes + 5000 + 100'000 + 2 * page_bytes);
  scene.model.check_content();
}

// A write that nobody marks is lost at a swap-out, also where the page stays.
TEST(what_was_written_without_a_word_does_not_stay) {
  for (const std::size_t at : {std::size_t{0}, page_bytes + 77, 2 * page_bytes + 4999}) {
    Scene scene;
    scene.out(0);
    scene.model.swap_in();
    scene.machine.bench.write(scene.model.regions[0]->address() + at, {1});
    scene.out(warmable);
    CHECK(scene.model.swap_in().recopied_bytes > 0);
    scene.model.check_content();
  }
}

TEST(what_was_never_saved_reads_as_zeros_on_pages_that_stayed) {
  Machine machine(4);
  Subject model(machine, 1);
  model.add(Tag::kv_cache, 2 * page_bytes - 9);
  machine.soil(0xC5);
  model.swap_in();
  model.write(0, 5, {page_bytes, page_bytes + 512});
  const DevicePtr kv = model.regions[0]->address();
  for (const std::size_t at : {std::size_t{0}, page_bytes - 1, 2 * page_bytes - 1}) {
    machine.bench.write(kv + at, {0xEE});
  }
  model.swap_out(2);
  model.swap_in();
  model.check_content();
  model.swap_out(2);
  model.cool(2);
  machine.soil(0x31);
  model.warm(1);
  model.swap_in();
  model.check_content();
}

TEST(a_model_with_warm_pages_stays_as_it_is) {
  Scene scene;
  scene.out(1);
  Subject& model = scene.model;
  CHECK_THROWS(UsageError, model.memory.add_region(Tag::weights, 1, -1));
  CHECK_THROWS(UsageError, model.memory.remove_region(*model.regions[3]));
  CHECK_THROWS(UsageError, model.memory.resize(*model.regions[0], 1, {}, 0, -1));
  CHECK_THROWS(UsageError, model.memory.adopt_image(*model.regions[0]));
  CHECK_THROWS(UsageError, model.memory.close());
  CHECK_THROWS(UsageError, model.memory.cool(2));
  CHECK_THROWS(UsageError, model.memory.swap_in({}));
  const std::vector<PagePtr> mine = model.memory.mapped_pages(*model.regions[0]);
  CHECK_THROWS(UsageError, model.memory.warm(mine));
  model.swap_in();
  model.check_content();
  model.swap_out();
  model.memory.close();
}

TEST(pages_that_are_stopped_on_their_way_change_nothing) {
  Scene scene;
  scene.out(2);
  std::stop_source stop;
  stop.request_stop();
  const auto pages = scene.machine.acquire(1, 3);
  CHECK_THROWS(Cancelled, scene.model.memory.warm(pages, 0, stop.get_token()));
  scene.model.give_back();
  scene.machine.soil(0x77);
  CHECK_EQ(scene.model.memory.warm_pages(), 2);
  scene.model.swap_in();
  scene.model.check_content();
}

// Whichever unmap or mapping fails, what was warm is, and what was resident too.
TEST(a_refusal_changes_nothing) {
  for (const bool cools : {true, false}) {
    for (std::uint64_t nth = 1;; ++nth) {
      Scene scene;
      if (cools) scene.out(5);
      scene.machine.plan->arm(nth, Status::unknown, false);
      bool failed = false;
      try {
        cools ? scene.model.cool(4) : static_cast<void>(scene.model.swap_out(1));
      } catch (const DriverError&) {
        failed = true;
      }
      const bool met = scene.machine.plan->injected() > 0;
      scene.machine.plan->disarm();
      CHECK_EQ(failed, met);
      CHECK_EQ(scene.model.memory.torn(), false);
      if (cools) CHECK_EQ(scene.model.memory.warm_pages(), failed ? 5 : 1);
      scene.machine.soil(0x42);
      if (!scene.model.memory.resident()) {
        CHECK_EQ(scene.model.swap_in().copied_bytes == 0, false);
      }
      scene.model.check_content();
      if (!met) break;
    }
  }
}

TEST(warm_pages_go_with_their_model) {
  Machine machine(3);
  {
    Subject model(machine, 1);
    model.add(Tag::weights, 3 * page_bytes);
    model.swap_in();
    model.write_all(3);
    model.swap_out(2);
    CHECK_EQ(machine.pool.free_pages(), 1);
  }
  CHECK_EQ(machine.pool.free_pages(), 3);
  machine.soil(1);
}

TEST(any_order_of_comings_and_goings_leaves_what_was_there) {
  for (const Verify verify : {Verify::always, Verify::sample, Verify::off}) {
    std::mt19937 random(static_cast<unsigned>(verify));
    const auto below = [&](std::size_t end) { return random() % end; };
    Scene scene(verify);
    for (int i = 0; i < 60; ++i) {
      Subject& model = scene.model;
      if (model.memory.resident()) {
        scene.out(below(warmable + 2));
      } else {
        const std::size_t warm = model.memory.warm_pages();
        switch (below(3)) {
          case 0: model.warm(below(warmable - warm + 1)); break;
          case 1:
            model.cool(below(warm + 1));
            scene.machine.soil(0x99);
            break;
          default:
            model.swap_in();
            model.check_content();
            model.write(below(4), random(), {0, 1 + below(100'000)});
        }
      }
    }
  }
}

// Pieces of what is digested that lie on two pages: of one that stayed and one that did not.
TEST(pieces_across_pages_come_whole) {
  for (std::size_t keep = 0; keep <= 5; ++keep) {
    SteppedMachine machine(keep, 16);
    ModelMemory memory(machine.faulty, small_page, 3 * small_page + 8);
    const RegionPtr region = memory.add_region(Tag::weights, 5 * small_page, -1);
    const Bytes content = pattern(keep, 5 * small_page);
    std::memcpy(region->image(), content.data(), content.size());
    memory.adopt_image(*region);
    const auto take = [&](std::size_t count) {
      std::vector<PagePtr> pages;
      for (const PageId id : machine.pool.acquire(1, count)) pages.push_back(machine.pool.page(id));
      return pages;
    };
    const auto swap_in = [&](std::size_t count) {
      CHECK_EQ(memory.swap_in(take(count)).recopied_bytes, 0);
      CHECK(std::memcmp(reinterpret_cast<void*>(region->address()), content.data(),
                        content.size()) == 0);
    };
    swap_in(5);
    memory.swap_out(keep);
    memory.warm(take((5 - keep) / 2));
    swap_in(5 - keep - (5 - keep) / 2);
    memory.swap_out();
  }
}

// Each piece has its turn, however many arrivals a swap-in is made of.
TEST(what_comes_ahead_in_parts_is_sampled_in_turn) {
  Machine machine(8);
  Subject model(machine, 1, Verify::sample);
  model.add(Tag::weights, 8 * page_bytes);
  model.swap_in();
  model.write_all(1);
  model.swap_out();
  std::size_t verified = 0;
  for (int turn = 0; turn < 16; ++turn) {
    for (int part = 0; part < 7; ++part) verified += model.warm(1).verified_bytes;
    verified += model.swap_in().verified_bytes;
    model.swap_out();
  }
  // And once more as it is wanted, but for what comes only then.
  CHECK_EQ(verified, 8 * page_bytes + 7 * page_bytes);
}

// Images that are kept elsewhere for a while: what they had comes back, or nothing changes.
#include <unistd.h>

#include "digest/digest.h"
#include "model_bench.h"

using namespace gpupool;

namespace {

void park_as_it_is(ModelMemory& memory, const std::vector<RegionPtr>& regions) {
  std::vector<std::uint64_t> changes;
  for (const RegionPtr& region : regions) changes.push_back(region->image_changes());
  memory.park(regions, changes);
}

// What a model parked, kept by the test.
struct Parked {
  explicit Parked(Subject& subject) : model(subject) {}
  void park(std::vector<RegionPtr> which) {
    copies.clear();
    for (const RegionPtr& region : which) {
      const auto* from = reinterpret_cast<const std::uint8_t*>(region->image());
      copies.emplace_back(from, from + region->bytes());
    }
    park_as_it_is(model.memory, which);
    regions = std::move(which);
  }
  std::vector<std::shared_ptr<HostMemory>> images() {
    std::vector<std::shared_ptr<HostMemory>> made;
    for (std::size_t i = 0; i < regions.size(); ++i) {
      made.push_back(model.memory.make_image(*regions[i], -1));
      std::memcpy(made.back()->data(), copies[i].data(), copies[i].size());
    }
    return made;
  }
  void unpark() { model.memory.unpark(regions, images()); }
  Subject& model;
  std::vector<RegionPtr> regions;
  std::vector<Bytes> copies;
};

struct Scene {
  explicit Scene(Verify verify = Verify::always) : model(machine, 1, verify), parked(model) {
    model.add_all();
    machine.soil(0xC5);
    model.swap_in();
    model.write_all(1);
    model.swap_out();
    machine.soil(0x77);
    static_cast<void>(model.memory.take_gone_image_bytes());
  }
  Machine machine{8};
  Subject model;
  Parked parked;
};

}  // namespace

TEST(what_was_parked_comes_back_to_the_same_bytes) {
  for (const Verify verify : {Verify::always, Verify::off}) {
    Scene scene(verify);
    ModelMemory& memory = scene.model.memory;
    const std::vector<RegionPtr> both{scene.model.regions[0], scene.model.regions[1]};
    std::size_t image_bytes = 0;
    for (const RegionPtr& region : both) image_bytes += region->image_bytes();
    const DevicePtr address = both[0]->address();
    const std::size_t warmable = memory.warmable_pages(), needed = memory.pages_needed();
    for (int round = 0; round < 3; ++round) {
      scene.parked.park(both);
      CHECK_EQ(memory.take_gone_image_bytes(), image_bytes);
      for (const RegionPtr& region : both) {
        CHECK(region->parked());
        CHECK_EQ(region->image_bytes(), 0);
        CHECK_EQ(memory.saved_bytes(*region), region->bytes());
      }
      CHECK(!scene.model.regions[2]->parked());
      CHECK_EQ(memory.warmable_pages(), warmable);
      CHECK_EQ(memory.pages_needed(), needed);
      scene.parked.unpark();
      CHECK(!both[0]->parked());
      CHECK_EQ(both[0]->address(), address);
      scene.model.swap_in();
      scene.model.check_content();
      scene.model.swap_out();
    }
    CHECK_EQ(memory.take_gone_image_bytes(), 0);
  }
}

TEST(a_parked_model_stays_out_and_as_it_is) {
  Scene scene;
  Subject& model = scene.model;
  scene.parked.park({model.regions[0]});
  const std::size_t free = scene.machine.pool.free_pages();
  CHECK_THROWS(UsageError, model.swap_in());
  CHECK_THROWS(UsageError, model.warm(1));
  CHECK_EQ(scene.machine.pool.free_pages(), free);
  CHECK_THROWS(UsageError, model.memory.resize(*model.regions[0], 1, {}, 0, -1));
  CHECK_THROWS(UsageError, model.memory.adopt_image(*model.regions[0]));
  CHECK_THROWS(UsageError, park_as_it_is(model.memory, {model.regions[0]}));
  CHECK_THROWS(UsageError, park_as_it_is(model.memory, {model.regions[3]}));  // a workspace
  CHECK_THROWS(UsageError, static_cast<void>(model.memory.make_image(*model.regions[1], -1)));
  CHECK_THROWS(UsageError, model.memory.unpark({model.regions[1]}, scene.parked.images()));
  CHECK_THROWS(UsageError, model.memory.unpark({model.regions[0]}, {}));
  CHECK_THROWS(UsageError, model.memory.unpark({model.regions[0]}, {nullptr}));
  const auto shorter = std::make_shared<HostMemory>(scene.machine.faulty, -1, page_bytes);
  CHECK_THROWS(UsageError, model.memory.unpark({model.regions[0]}, {shorter}));
  Subject other(scene.machine, 2);
  other.add(Tag::weights, 4096);
  CHECK_THROWS(UsageError, park_as_it_is(other.memory, {model.regions[1]}));
  CHECK_THROWS(UsageError, static_cast<void>(other.memory.make_image(*model.regions[0], -1)));
  CHECK_THROWS(UsageError, other.memory.unpark({model.regions[0]}, scene.parked.images()));
  scene.parked.unpark();
  model.swap_in();
  CHECK_THROWS(UsageError, park_as_it_is(model.memory, {model.regions[0]}));
  model.check_content();
  model.swap_out(1);
  CHECK_THROWS(UsageError, park_as_it_is(model.memory, {model.regions[0]}));  // it has a warm page
  model.cool(1);
  scene.parked.park({model.regions[0]});
  model.memory.remove_region(*model.regions[0]);
  model.memory.close();
}

// All or none: of several the first come back as they were.
TEST(an_image_that_somebody_looks_at_is_not_parked) {
  Scene scene;
  Subject& model = scene.model;
  const auto looked_at = model.regions[1]->share_image();
  CHECK_THROWS(UsageError, park_as_it_is(model.memory, {model.regions[0], model.regions[1]}));
  CHECK(model.regions[0]->image() != nullptr && !model.regions[0]->parked());
  CHECK_EQ(model.memory.take_gone_image_bytes(), 0);
  model.swap_in();
  model.check_content();
}

TEST(what_comes_back_otherwise_is_found_before_a_step) {
  Scene scene;
  scene.parked.park({scene.model.regions[0]});
  scene.parked.copies[0][page_bytes + 4999] ^= 1;
  scene.parked.unpark();
  CHECK_THROWS(DamagedImage, scene.model.swap_in());
  scene.model.check_out();
}

// An image that grew has pieces that end where it did; it comes back in one.
TEST(an_image_that_has_grown_is_parked_as_one) {
  for (const bool damaged : {false, true}) {
    Machine machine(6);
    Subject model(machine, 1);
    const RegionPtr region = model.memory.add_region(Tag::weights, 5000, -1, 2 * page_bytes);
    model.regions.push_back(region);
    model.expected.push_back(Bytes(page_bytes + 77, 0));
    model.memory.resize(*region, page_bytes + 77, {}, 0, -1);
    model.swap_in();
    model.write(0, 3, {0, page_bytes + 77});
    model.swap_out();
    Parked parked(model);
    if (damaged) {
      for (const std::size_t at : {std::size_t{4999}, std::size_t{8192}}) {
        region->image()[at] ^= std::byte{4};
        CHECK_THROWS(DamagedImage, park_as_it_is(model.memory, {region}));
        CHECK(!region->parked());
        region->image()[at] ^= std::byte{4};
      }
    }
    parked.park({region});
    parked.unpark();
    CHECK_EQ(region->image_bytes(), page_bytes + 4096);
    model.swap_in();
    model.check_content();
    model.swap_out();
    model.memory.resize(*region, 2 * page_bytes, {}, 0, -1);
    model.expected[0].resize(2 * page_bytes, 0);
    model.swap_in();
    model.check_content();
  }
}

TEST(memory_for_an_image_that_is_not_used_is_said_to_be_gone) {
  Scene scene;
  scene.parked.park({scene.model.regions[1]});
  static_cast<void>(scene.model.memory.take_gone_image_bytes());
  scene.parked.images().clear();
  CHECK_EQ(scene.model.memory.take_gone_image_bytes(), 102'400);
  scene.parked.unpark();
  CHECK_EQ(scene.model.memory.take_gone_image_bytes(), 0);
  scene.model.memory.remove_region(*scene.model.regions[1]);
  CHECK_EQ(scene.model.memory.take_gone_image_bytes(), 102'400);
}

TEST(who_has_a_copy_knows_whether_the_image_has_changed) {
  for (const Verify verify : {Verify::always, Verify::off}) {
    Scene scene(verify);
    Subject& model = scene.model;
    const auto changes = [&](std::size_t i) { return model.regions[i]->image_changes(); };
    std::uint64_t weights = changes(0), runtime = changes(1);
    scene.parked.park({model.regions[0], model.regions[1]});
    scene.parked.unpark();
    CHECK_EQ(changes(0), weights);
    model.swap_in();
    model.swap_out();
    CHECK_EQ(changes(0), weights);
    CHECK_EQ(changes(1) != runtime, verify == Verify::off);  // which saves it unseen
    model.swap_in();
    model.write(0, 9, {5, 6});
    model.swap_out();
    CHECK(changes(0) != std::exchange(weights, changes(0)));
    model.memory.adopt_image(*model.regions[0]);
    CHECK(changes(0) != std::exchange(weights, changes(0)));
    const std::vector<RegionPtr> both{model.regions[1], model.regions[0]};
    CHECK_THROWS(UsageError, model.memory.park(both, {changes(1), weights - 1}));
    CHECK_THROWS(UsageError, model.memory.park(both, {changes(1)}));
    CHECK(model.regions[1]->image() != nullptr);
    model.memory.resize(*model.regions[0], 4096, {}, 0, -1);
    CHECK(changes(0) != weights);
  }
}

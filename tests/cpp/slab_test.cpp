// The slab allocator in one thread: against a plain model, and with every handle that is none.
#include <set>

#include "slab_bench.h"

using namespace gpupool;

namespace {

std::string refusal(SlabAllocator& slabs, BlockHandle handle) {
  std::string first;
  try {
    static_cast<void>(slabs.address_of(handle));
  } catch (const StaleBlock& error) {
    CHECK(handle_of(error.name()) == handle);
    first = error.what();
  }
  try {
    slabs.free(handle);
  } catch (const StaleBlock& error) {
    CHECK(handle_of(error.name()) == handle);
    CHECK_EQ(first, std::string(error.what()));
    return first;
  }
  check::fail(__FILE__, __LINE__, "a block that is not in use was freed");
}

void run_model(SlabLimits limits, std::uint64_t seed, int steps) {
  Scene scene(std::move(limits));
  Model model(*scene.slabs, seed);
  const std::size_t shapes = scene.slabs->statistics().shapes.size();
  std::size_t allocating = 5;  // of 10
  for (int step = 0; step < steps; ++step) {
    if (step % 2000 == 0) allocating = 2 + model.below(7);
    const std::size_t kind = model.below(100);
    if (kind < 3) {
      if (model.dead.empty()) continue;
      const BlockHandle stale = model.dead[model.below(model.dead.size())];
      CHECK(refusal(*scene.slabs, stale).find("was freed already") != std::string::npos);
    } else if (kind == 3) {  // bits that are no handle, but look much like one
      const BlockName near{static_cast<std::uint32_t>(model.below(40)),
                           static_cast<std::uint32_t>(model.below(300)),
                           static_cast<std::uint32_t>(model.below(1u << 20)) + (1u << 20)};
      CHECK(!refusal(*scene.slabs, handle_of(near)).empty());
    } else if (model.live.empty() || model.below(10) < allocating) {
      const std::size_t shape = model.below(shapes);
      if (!model.allocate(shape)) {  // then nothing was to be had
        const SlabStatistics all = scene.slabs->statistics();
        CHECK_EQ(all.shapes[shape].blocks, all.shapes[shape].blocks_live);
        CHECK_EQ(all.slabs, 12);
      }
    } else {
      model.free(model.below(model.live.size()));
    }
    if (step % 1000 == 0) {
      model.check_statistics();
      CHECK_EQ(scene.source->runs(), scene.slabs->statistics().slabs);
    }
    if (step % 5000 == 2500) scene.slabs->trim();
  }
  while (!model.live.empty()) model.free(model.live.size() - 1);
  model.check_statistics();
  scene.slabs->trim();
  CHECK_EQ(scene.source->runs(), 0);
}

}  // namespace

TEST(random_operations_agree_with_a_model) {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    try {
      SlabLimits limits{{64, 192, 4096}, 12};
      limits.thread_owned = seed % 5 != 4;
      run_model(limits, seed, 100'000);
    } catch (const check::Failure& failure) {
      throw check::Failure("seed " + std::to_string(seed) + ": " + failure.what());
    }
  }
}

TEST(limits_are_checked_at_the_door) {
  CHECK_THROWS(UsageError, Scene({{}, 1}));
  CHECK_THROWS(UsageError, Scene({std::vector<std::size_t>(65, 64), 1}));
  CHECK_THROWS(UsageError, Scene({{0}, 1}));
  CHECK_THROWS(UsageError, Scene({{slab_bytes + 1}, 1}));
  CHECK_THROWS(UsageError, Scene({{64}, 0}));
  CHECK_THROWS(UsageError, Scene({{64}, 65537}));
  CHECK_THROWS(UsageError, Scene({{64, 128}, 32769}));
  CHECK_THROWS(UsageError, Scene({{64}, 1, 0}));
  CHECK_THROWS(UsageError, Scene({{64}, 1, 0x80000000}));
  CHECK_THROWS(UsageError, SlabAllocator::create(std::make_shared<HeapSlabs>(65537), {{1}, 1}));
  Scene scene({{192, 64, 4096}, 1});
  CHECK_THROWS(UsageError, scene.slabs->allocate(3));
  CHECK_THROWS(UsageError, scene.slabs->block_bytes(3));
  CHECK_EQ(scene.slabs->shape_for(1), 1);
  CHECK_EQ(scene.slabs->shape_for(65), 0);
  CHECK_EQ(scene.slabs->shape_for(4096), 2);
  CHECK_THROWS(UsageError, scene.slabs->shape_for(4097));
  CHECK_EQ(scene.source->runs(), 0);
}

TEST(a_refusal_names_the_block) {
  Scene scene({{4096}, 1});
  const BlockHandle first = scene.slabs->allocate(0);
  const std::string name = "block 0 of slab 0 (generation 1) ";
  scene.slabs->free(first);
  CHECK_EQ(refusal(*scene.slabs, first), name + "was freed already");
  const BlockHandle second = scene.slabs->allocate(0);
  CHECK(name_of(second).block == 0 && name_of(second).generation == 3);
  CHECK_EQ(refusal(*scene.slabs, first), name + "was freed already, and handed out again since");
  for (const BlockName none : {BlockName{0, 0, 0},
                               {0, 0, 2},
                               {0, 0, 4},
                               {0, 0, 5},
                               {0, 1, 1},
                               {0, 4, 1},
                               {1, 0, 1},
                               {65535, 65535, 0xFFFFFFFF}}) {
    CHECK(refusal(*scene.slabs, handle_of(none)).find("never existed") != std::string::npos);
  }
  scene.slabs->free(second);
  CHECK(!refusal(*scene.slabs, handle_of({0, 0, 4})).empty());  // what a free block has
  scene.slabs->trim();
  CHECK_EQ(refusal(*scene.slabs, second),
           std::string("block 0 of slab 0 (generation 3) was freed already"));
}

TEST(generations_go_on_in_the_next_slab) {
  Scene scene({{slab_bytes}, 1});
  std::set<BlockHandle> all;
  for (int i = 0; i < 100; ++i) {
    const BlockHandle handle = scene.slabs->allocate(0);
    CHECK(all.insert(handle).second);
    scene.slabs->free(handle);
    scene.slabs->trim();
    CHECK_EQ(scene.source->runs(), 0);
  }
}

TEST(a_block_used_up_is_never_handed_out_again) {
  for (const bool owned : {true, false}) {
    Scene scene({{4096}, 2, 3, owned});
    std::set<BlockHandle> all;
    for (int i = 0; i < 24; ++i) {  // 2 slabs of 4 blocks, 3 uses each
      const BlockHandle handle = scene.slabs->allocate(0);
      CHECK(all.insert(handle).second);
      scene.slabs->free(handle);
      CHECK_THROWS(StaleBlock, scene.slabs->free(handle));
    }
    CHECK_THROWS(OutOfBlocks, scene.slabs->allocate(0));
    CHECK_EQ(scene.source->runs(), 0);
  }
}

TEST(empty_slabs_go_back_but_one) {
  for (const bool owned : {true, false}) {
    Scene scene({{4096}, 8, 0x7FFFFFFF, owned});
    std::vector<BlockHandle> all;
    for (int i = 0; i < 32; ++i) all.push_back(scene.slabs->allocate(0));
    CHECK_EQ(scene.source->runs(), 8);
    CHECK_THROWS(OutOfBlocks, scene.slabs->allocate(0));
    CHECK_EQ(scene.slabs->statistics().fragmentation, 0.0);
    scene.slabs->free(all.back());
    CHECK_EQ(scene.slabs->statistics().fragmentation, 1.0 / 32);
    all.back() = scene.slabs->allocate(0);
    for (const BlockHandle handle : all) scene.slabs->free(handle);
    CHECK(scene.source->runs() <= 2);
    scene.slabs->trim();
    CHECK_EQ(scene.source->runs(), 0);
    CHECK_EQ(scene.slabs->statistics().slabs_returned, 8);
  }
}

TEST(the_last_block_back_and_forth_makes_no_slab) {
  for (const bool owned : {true, false}) {
    Scene scene({{4096}, 8, 0x7FFFFFFF, owned});
    for (int i = 0; i < 4; ++i) static_cast<void>(scene.slabs->allocate(0));
    for (int i = 0; i < 100; ++i) scene.slabs->free(scene.slabs->allocate(0));
    CHECK_EQ(scene.slabs->statistics().slabs_made, 2);
    scene.slabs->trim();
    for (int i = 0; i < 100; ++i) scene.slabs->free(scene.slabs->allocate(0));
    CHECK_EQ(scene.slabs->statistics().slabs_made, 3);
  }
}

TEST(an_empty_slab_of_one_shape_makes_room_for_another) {
  Scene scene({{64, 4096}, 1});
  scene.slabs->free(scene.slabs->allocate(0));
  const BlockHandle other = scene.slabs->allocate(1);
  CHECK_THROWS(OutOfBlocks, scene.slabs->allocate(0));
  scene.slabs->free(other);
  scene.slabs->free(scene.slabs->allocate(0));
}

TEST(an_allocator_gives_back_what_is_in_use) {
  Scene scene;
  for (int i = 0; i < 300; ++i) static_cast<void>(scene.slabs->allocate(1));
  CHECK_EQ(scene.source->runs(), 4);
  scene.slabs.reset();
  CHECK_EQ(scene.source->runs(), 0);
}

// It asks once, and only where somebody may still use a block.
TEST(blocks_in_use_as_an_allocator_ends_are_waited_for) {
  for (const bool ends : {false, true}) {
    Scene scene;
    const BlockHandle used = scene.slabs->allocate(0);
    static_cast<void>(scene.slabs->allocate(2));
    scene.slabs->free(scene.slabs->allocate(1));
    stamp(scene.slabs->address_of(used), 64, used);
    const DevicePtr address = scene.slabs->address_of(used);
    scene.source->ends = ends;
    CHECK_EQ(scene.source->runs(), 3);
    scene.slabs.reset();
    CHECK_EQ(scene.source->waits, 1);
    CHECK_EQ(scene.source->runs(), 0);
    CHECK_EQ(scene.source->abandoned.size(), ends ? 0 : 2);
    if (!ends) CHECK(stamped(address, 64, used));
  }
  Scene scene;
  scene.slabs->free(scene.slabs->allocate(0));
  scene.slabs.reset();
  CHECK_EQ(scene.source->waits, 0);
}

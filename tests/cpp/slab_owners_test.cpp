// Whose a slab is: the thread's that alone uses it, nobody's when others do or when it ends.
#include <atomic>
#include <thread>

#include "slab_bench.h"

using namespace gpupool;

TEST(a_slab_is_taken_when_another_thread_frees) {
  Scene scene({{64}, 4});
  const BlockHandle first = scene.slabs->allocate(0);
  const BlockHandle second = scene.slabs->allocate(0);
  in_another_thread([&] {
    CHECK(frees(*scene.slabs, first));
    CHECK(!frees(*scene.slabs, first));
  });
  CHECK_EQ(scene.slabs->statistics().slabs_taken, 1);
  CHECK(!frees(*scene.slabs, first));
  scene.slabs->free(second);
  CHECK_EQ(scene.slabs->statistics().slabs, 1);
  CHECK_EQ(scene.slabs->statistics().slabs_taken, 1);
}

TEST(a_stale_handle_takes_no_slab) {
  Scene scene({{64}, 4});
  const BlockHandle stale = scene.slabs->allocate(0);
  scene.slabs->free(stale);
  in_another_thread([&] { CHECK(!frees(*scene.slabs, stale)); });
  CHECK_EQ(scene.slabs->statistics().slabs_taken, 0);
}

TEST(a_slab_used_by_one_thread_alone_is_its_own_again) {
  Scene scene({{64}, 4});
  const BlockHandle first = scene.slabs->allocate(0);
  in_another_thread([&] { scene.slabs->free(first); });
  for (int i = 0; i < 2000; ++i) scene.slabs->free(scene.slabs->allocate(0));
  const BlockHandle second = scene.slabs->allocate(0);
  in_another_thread([&] { scene.slabs->free(second); });
  CHECK_EQ(scene.slabs->statistics().slabs_taken, 2);
  CHECK_EQ(scene.slabs->statistics().slabs_made, 1);
}

TEST(a_slab_used_in_turns_goes_to_no_thread) {
  Scene scene({{64}, 4});
  BlockHandle block = scene.slabs->allocate(0);
  for (int i = 0; i < 100; ++i) {
    in_another_thread([&] {
      scene.slabs->free(block);
      block = scene.slabs->allocate(0);
    });
    scene.slabs->free(block);
    block = scene.slabs->allocate(0);
  }
  CHECK_EQ(scene.slabs->statistics().slabs_taken, 1);
  CHECK_EQ(scene.slabs->statistics().slabs_made, 1);
}

TEST(what_another_thread_has_free_is_found_when_nothing_else_is) {
  Scene scene({{4096}, 1});
  const BlockHandle mine = scene.slabs->allocate(0);
  in_another_thread([&] {
    std::vector<BlockHandle> all;
    for (int i = 0; i < 3; ++i) all.push_back(scene.slabs->allocate(0));
    CHECK_THROWS(OutOfBlocks, scene.slabs->allocate(0));
    for (const BlockHandle handle : all) scene.slabs->free(handle);
  });
  scene.slabs->free(mine);
}

TEST(trim_finds_what_another_thread_left_empty) {
  Scene scene({{4096}, 4});
  std::atomic<int> stage{0};
  std::thread other([&] {
    scene.slabs->free(scene.slabs->allocate(0));
    stage = 1;
    while (stage != 2) std::this_thread::yield();
    scene.slabs->free(scene.slabs->allocate(0));  // and it goes on
  });
  while (stage != 1) std::this_thread::yield();
  CHECK_EQ(scene.source->runs(), 1);
  scene.slabs->trim();
  CHECK_EQ(scene.source->runs(), 0);
  stage = 2;
  other.join();
  CHECK_EQ(scene.slabs->statistics().slabs_made, 2);
}

TEST(a_thread_that_ends_leaves_its_slabs) {
  Scene scene({{4096}, 4});
  BlockHandle left{};
  in_another_thread([&] {
    left = scene.slabs->allocate(0);
    for (int i = 0; i < 3; ++i) static_cast<void>(scene.slabs->allocate(0));
    scene.slabs->free(scene.slabs->allocate(0));
  });
  CHECK_EQ(scene.source->runs(), 2);
  stamp(scene.slabs->address_of(left), 4096, left);
  scene.slabs->free(left);
  const BlockHandle again = scene.slabs->allocate(0);  // in a slab that is there
  CHECK_EQ(scene.source->runs(), 2);
  scene.slabs->free(again);
  CHECK_EQ(scene.slabs->statistics().slabs_taken, 0);  // they were left, not taken
}

TEST(a_thread_outlives_the_allocators_it_used) {
  const auto source = std::make_shared<HeapSlabs>(slab_bytes);
  in_another_thread([&] {
    for (int i = 0; i < 10; ++i) {
      const auto one = SlabAllocator::create(source, {{64}, 4});
      const auto two = SlabAllocator::create(source, {{64}, 4});
      for (int k = 0; k < 100; ++k) {
        const BlockHandle a = one->allocate(0);
        const BlockHandle b = two->allocate(0);
        CHECK_EQ(static_cast<std::uint64_t>(a), static_cast<std::uint64_t>(b));
        CHECK(one->address_of(a) != two->address_of(b));
        one->free(a);
        CHECK(two->address_of(b) != 0);
        two->free(b);
      }
      CHECK_EQ(source->runs(), 2);
    }
  });
  CHECK_EQ(source->runs(), 0);
}

namespace {

std::shared_ptr<SlabAllocator> late;
std::atomic<int> late_pairs{0};
struct Late {
  ~Late() {  // after the thread has left the allocator
    late->free(late->allocate(0));
    ++late_pairs;
  }
};

}  // namespace

TEST(a_thread_may_still_allocate_while_it_ends) {
  const auto source = std::make_shared<HeapSlabs>(slab_bytes);
  late = SlabAllocator::create(source, {{64}, 4});
  in_another_thread([] {
    static thread_local Late last;
    static_cast<void>(last);
    late->free(late->allocate(0));
  });
  CHECK_EQ(late_pairs.load(), 1);
  late.reset();
  CHECK_EQ(source->runs(), 0);
}

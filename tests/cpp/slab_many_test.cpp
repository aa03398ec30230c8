// Many blocks at once: all of them or none.
#include <set>

#include "slab_bench.h"

using namespace gpupool;

TEST(many_blocks_are_apart) {
  Scene scene({{4096}, 12});
  std::vector<BlockHandle> handles(30);
  scene.slabs->allocate_many(0, handles);
  std::vector<DevicePtr> addresses(30);
  scene.slabs->addresses_of(handles, addresses);
  CHECK_EQ(std::set(addresses.begin(), addresses.end()).size(), 30);
  for (std::size_t i = 0; i < 30; ++i) CHECK_EQ(addresses[i], scene.slabs->address_of(handles[i]));
  CHECK_EQ(scene.slabs->statistics().shapes[0].blocks_live, 30);
  scene.slabs->free_many(handles);
  CHECK_EQ(scene.slabs->statistics().bytes_live, 0);
  scene.slabs->allocate_many(0, {});
  scene.slabs->free_many({});
  scene.slabs->trim();
  CHECK_EQ(scene.source->runs(), 0);
}

TEST(more_than_there_are_is_none) {
  for (const bool owned : {true, false}) {
    Scene scene({{4096}, 3, 0x7FFFFFFF, owned});
    const std::size_t room = 3 * (slab_bytes / 4096);
    std::vector<BlockHandle> handles(room + 1);
    CHECK_THROWS(OutOfBlocks, scene.slabs->allocate_many(0, handles));
    CHECK_EQ(scene.slabs->statistics().bytes_live, 0);
    CHECK_THROWS(UsageError, scene.slabs->allocate_many(1, handles));
    handles.resize(room);
    scene.slabs->allocate_many(0, handles);
    scene.slabs->free_many(handles);
  }
}

TEST(a_source_that_fails_in_between_leaves_none) {
  for (std::uint64_t nth = 1; nth <= 3; ++nth) {
    Scene scene({{4096}, 3});
    std::vector<BlockHandle> handles(3 * (slab_bytes / 4096));
    scene.source->fail_at = nth;
    CHECK_THROWS(SourceFault, scene.slabs->allocate_many(0, handles));
    CHECK_EQ(scene.slabs->statistics().bytes_live, 0);
    scene.slabs->allocate_many(0, handles);
  }
}

TEST(a_wrong_handle_among_many_changes_nothing) {
  Scene scene({{4096}, 12});
  std::vector<BlockHandle> handles(8), more(1);
  scene.slabs->allocate_many(0, handles);
  scene.slabs->allocate_many(0, more);
  scene.slabs->free_many(more);
  std::vector<BlockHandle> stale = handles, twice = handles;
  stale.push_back(more[0]);
  twice.push_back(handles[0]);
  CHECK_THROWS(StaleBlock, scene.slabs->free_many(stale));
  CHECK_THROWS(StaleBlock, scene.slabs->free_many(twice));
  std::vector<DevicePtr> addresses(stale.size(), 1);
  CHECK_THROWS(StaleBlock, scene.slabs->addresses_of(stale, addresses));
  CHECK_EQ(addresses, std::vector<DevicePtr>(stale.size(), 1));
  CHECK_THROWS(UsageError, scene.slabs->addresses_of(handles, addresses));
  CHECK_EQ(scene.slabs->statistics().shapes[0].blocks_live, 8);
  scene.slabs->free_many(handles);
  CHECK_THROWS(StaleBlock, scene.slabs->free_many(handles));
}

// A region that is cut into blocks, and has no memory for its books when it is resized: it is as
// before, or resized throughout.
#include "failing_new.h"
#include "model_bench.h"

using namespace gpupool;

TEST(a_region_and_its_blocks_have_one_size) {
  for (std::uint64_t nth = 1;; ++nth) {
    Machine machine(1);
    ModelMemory memory(machine.faulty, page_bytes, mib);
    const RegionPtr region = memory.add_region(Tag::runtime, page_bytes, -1, 3 * page_bytes);
    const auto arena = memory.share_out(*region, 512);
    CHECK(arena->allocate(page_bytes));  // so that more room is a block more
    fail_allocations(nth, false);
    bool failed = false;
    try {
      memory.resize(*region, 2 * page_bytes, {}, 0, -1);
    } catch (const std::bad_alloc&) {
      failed = true;
    } catch (const DriverError&) {
      failed = true;  // the host driver found none either
    }
    bad_alloc_at = 0;
    CHECK_EQ(region->bytes(), failed ? page_bytes : 2 * page_bytes);
    CHECK_EQ(arena->statistics().limit_bytes, region->bytes());
    memory.resize(*region, 3 * page_bytes, {}, 0, -1);
    CHECK(arena->allocate(2 * page_bytes));
    if (bad_allocs == 0) break;
    CHECK(failed);
  }
}

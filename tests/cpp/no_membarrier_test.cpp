// A kernel without membarrier: no thread has slabs of its own, and all else is as ever. A program
// of its own, because what the kernel can is asked once.
#include <cerrno>
#include <thread>

#include "refuse.h"
#include "slab_bench.h"

using namespace gpupool;

TEST(slabs_are_shared_where_they_could_not_be_taken) {
  refuse::nth(refuse::Call::membarrier, 1, ENOSYS);
  const Scene scene;
  CHECK_EQ(refuse::done(), 1);
  const auto work = [&](std::uint64_t seed) {
    Model model(*scene.slabs, seed);
    for (int i = 0; i < 20'000; ++i) {
      if (model.below(2) == 0 && !model.live.empty()) {
        model.free(model.below(model.live.size()));
      } else {
        model.allocate(model.below(3));
      }
    }
    while (!model.live.empty()) model.free(0);
  };
  std::thread other(work, 1);
  work(2);
  other.join();
  const SlabStatistics all = scene.slabs->statistics();
  CHECK_EQ(all.bytes_live, 0);
  CHECK(all.slabs_made > 0);
  CHECK_EQ(all.slabs_taken, 0);  // nobody owned one
}

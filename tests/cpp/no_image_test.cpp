// A region without an image: it comes and goes with its model, and nothing of it is saved.
#include "model_bench.h"

using namespace gpupool;

TEST(a_kv_cache_without_an_image_is_never_saved) {
  Machine machine(8);
  Subject a(machine, 1);
  a.add(Tag::weights, 5000);
  Region& cache = a.add(Tag::kv_cache, page_bytes + 10, std::nullopt);
  CHECK_EQ(cache.image_bytes(), 0);
  CHECK_EQ(a.memory.missing_image_bytes(cache, 2 * page_bytes), 0);
  CHECK_THROWS(UsageError, a.memory.adopt_image(cache));
  a.swap_in();
  CHECK_THROWS(UsageError, a.memory.mark_written(cache, {{0, 1}}));
  a.write_all(3);
  CHECK_EQ(a.swap_out().copied_bytes, 5000);
  machine.soil(0x66);
  a.swap_in();
  a.check_content();
  for (const Tag tag : {Tag::weights, Tag::runtime, Tag::cudagraph}) {
    Subject b(machine, 2);
    CHECK_THROWS(UsageError, b.add(tag, 100, std::nullopt));
    CHECK_EQ(b.memory.pages_needed(), 0);
  }
}

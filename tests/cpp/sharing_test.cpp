// Models whose images have some of the same bytes: pages and host memory that are behind both.
#include "real_gpu.h"
#include "tuned_bench.h"

using namespace gpupool;

namespace {

constexpr Status refused = Status::invalid_value;

struct Scene {
  explicit Scene(Verify verify = Verify::always)
      : one(machine, 1, verify), other(machine, 2, verify) {
    machine.soil(0xC5);
    one.swap_in();
  }
  // The pages of `one` that `other` has the bytes of too, or so it is told.
  std::vector<SharedPage> same(std::initializer_list<std::size_t> which = {0, 2}) {
    const auto pages = one.memory.mapped_pages(one.weights());
    std::vector<SharedPage> shared;
    for (const std::size_t at : which) shared.push_back({1 + at, pages[at]});
    return shared;
  }
  SwapReport swap_in(const std::vector<SharedPage>& shared) {
    const std::size_t needed = other.memory.pages_needed() - other.memory.warm_pages();
    for (const SharedPage& page : shared) machine.pool.share(2, {&id_of(page), 1});
    auto pages = machine.acquire(2, needed - shared.size());
    try {
      return other.memory.swap_in(pages, 0, {}, shared);
    } catch (...) {
      other.give_back();
      throw;
    }
  }
  Machine machine{16};
  Tuned one, other;

 private:
  const PageId& id_of(const SharedPage& shared) {
    for (id_ = 0; machine.pool.page(id_) != shared.page;) ++id_;
    return id_;
  }
  PageId id_ = 0;
};

}  // namespace

TEST(what_is_there_for_another_is_not_copied) {
  Scene scene;
  const std::size_t free = scene.machine.pool.free_pages();
  const SwapReport report = scene.swap_in(scene.same());
  CHECK_EQ(report.shared_bytes, 2 * page_bytes);
  CHECK_EQ(report.copied_bytes, page_bytes + 5000);  // its runtime was never saved
  CHECK_EQ(report.verified_bytes, weights_bytes);
  CHECK_EQ(report.pages, 4);
  CHECK_EQ(scene.machine.pool.free_pages(), free - 4);
  scene.one.check_content();
  scene.other.check_content();

  // The page goes with whoever leaves last.
  scene.one.swap_out();
  CHECK_EQ(scene.machine.pool.free_pages(), 16 - 6);
  scene.machine.soil(0x77);
  scene.other.check_content();
  scene.other.swap_out();
  CHECK_EQ(scene.machine.pool.free_pages(), 16);
  scene.other.swap_in();
  scene.other.check_content();
}

TEST(without_verifying_what_is_shared_is_taken_as_it_is) {
  Scene scene(Verify::off);
  CHECK_EQ(scene.swap_in(scene.same()).copied_bytes, page_bytes + 5000);
  scene.other.check_content();
}

TEST(nobody_writes_to_a_sealed_region) {
  Scene scene;
  Bench& bench = scene.machine.bench;
  const bool asks = !left_out_on_a_gpu(
      "writing to what is mapped for reading alone: cuda.h promises no refusal, and a fault would "
      "fail all later tests; benchmarks/probe_gpu.py --parts read_only does it in processes apart");
  const auto locked = [&](Tuned& model) {
    const DevicePtr weights = model.weights().address();
    const std::size_t pages = model.memory.mapped_pages(model.weights()).size();
    for (std::size_t i = 0; asks && i < pages; ++i) {
      CHECK_EQ(bench->fill(weights + i * page_bytes, 1, 16, bench.stream()), refused);
    }
    return pages;
  };
  CHECK_EQ(locked(scene.one), 4);
  scene.swap_in(scene.same());
  CHECK_EQ(locked(scene.other), 4);
  scene.other.swap_out(3);  // its runtime and two pages of weights stay
  CHECK_EQ(locked(scene.other), 2);
  scene.other.warm(1);
  CHECK_EQ(locked(scene.other), 3);
  scene.other.cool(2);
  CHECK_EQ(locked(scene.other), 1);
  scene.other.swap_in();
  CHECK_EQ(locked(scene.other), 4);
  bench.write(scene.other.regions[0]->address(), {0});  // what is not sealed can be written to
  // Also when it stays because the driver did not let it go.
  scene.machine.plan->arm_call(DriverCall::unmap, 2, 1, Status::unknown);
  CHECK_THROWS(DriverError, scene.other.swap_out(2));
  scene.machine.plan->disarm();
  CHECK(scene.other.memory.resident());
  CHECK_EQ(locked(scene.other), 4);
  scene.machine.plan->arm_call(DriverCall::unmap, 3, 1, Status::unknown);
  CHECK_THROWS(DriverError, scene.other.swap_out());
  scene.machine.plan->disarm();
  CHECK_EQ(locked(scene.other), 4);
  scene.other.check_content();
}

TEST(all_pages_of_a_sealed_region_can_stay) {
  Scene scene;
  scene.swap_in(scene.same());
  scene.other.swap_out(5);
  CHECK_EQ(scene.other.memory.warm_pages(), 5);
  const SwapReport report = scene.other.swap_in();
  CHECK_EQ(report.copied_bytes, 0);
  CHECK_EQ(report.verified_bytes, weights_bytes + 100'000);
  scene.other.check_content();
}

TEST(what_is_sealed_cannot_be_changed) {
  Scene scene;
  CHECK_THROWS(UsageError, scene.one.memory.mark_written(scene.one.weights(), {{0, 1}}));
  CHECK_THROWS(UsageError, scene.one.memory.resize(scene.one.weights(), 1, {}, 0, -1));
  CHECK_THROWS(UsageError, scene.one.memory.unseal(scene.one.weights()));
  CHECK_THROWS(UsageError, scene.other.memory.adopt_image(scene.other.weights()));
  CHECK_THROWS(UsageError, scene.other.memory.resize(scene.other.weights(), 1, {}, 0, -1));
  scene.one.swap_out(2);
  CHECK_THROWS(UsageError, scene.one.memory.unseal(scene.one.weights()));
  scene.one.cool(2);
  scene.one.memory.unseal(scene.one.weights());
  scene.one.swap_in();
  scene.one.write(1, 3, {page_bytes - 5, page_bytes + 5});
  scene.one.swap_out();
  scene.one.swap_in();
  scene.one.check_content();
}

TEST(only_what_an_image_has_is_sealed) {
  Machine machine(8);
  Subject model(machine, 1);
  model.add_all();
  const auto refuses = [&](std::size_t index) {
    CHECK_THROWS(UsageError, model.memory.seal(*model.regions[index]));
  };
  for (std::size_t i = 0; i < 4; ++i) refuses(i);  // nothing is saved, or no image
  model.swap_in();
  model.write_all(1);
  refuses(0);
  model.swap_out(1);
  refuses(0);
  model.cool(1);
  const auto arena = model.memory.share_out(*model.regions[0], 256);
  refuses(0);
  ModelMemory fine(machine.faulty, page_bytes, 3 * mib, 2, Verify::always);
  const RegionPtr region = fine.add_region(Tag::weights, page_bytes, -1);
  fine.adopt_image(*region);
  fine.seal(*region);
  CHECK_THROWS(UsageError, model.memory.seal(*region));
  CHECK_THROWS(UsageError, model.memory.unseal(*region));
  ModelMemory coarse(machine.bench.driver(), page_bytes, page_bytes / 2 + 4096);
  const RegionPtr odd = coarse.add_region(Tag::weights, page_bytes, -1);
  coarse.adopt_image(*odd);
  CHECK_THROWS(UsageError, coarse.seal(*odd));
}

TEST(only_whole_pages_of_sealed_regions_are_shared) {
  Scene scene;
  const auto pages = scene.one.memory.mapped_pages(scene.one.weights());
  const auto refuses = [&](std::vector<SharedPage> shared) {
    auto own = scene.machine.acquire(2, scene.other.memory.pages_needed() - shared.size());
    CHECK_THROWS(UsageError, scene.other.memory.swap_in(own, 0, {}, shared));
    scene.other.give_back();
    scene.other.check_out();
  };
  refuses({{0, pages[0]}});                 // not sealed
  refuses({{4, pages[3]}});                 // in part
  refuses({{5, pages[0]}});                 // a workspace
  refuses({{1000, pages[0]}});              // beyond
  refuses({{1, pages[0]}, {1, pages[2]}});  // twice at one place
  refuses({{1, pages[0]}, {3, pages[0]}});  // at two places
  refuses({{1, nullptr}});
  scene.other.memory.unseal(scene.other.weights());
  refuses({{1, pages[0]}});
  scene.other.memory.seal(scene.other.weights());
  scene.swap_in(scene.same());
  scene.other.swap_out(2);
  CHECK_THROWS(UsageError, scene.swap_in(scene.same({0, 2})));  // it has a page there
  CHECK_EQ(scene.swap_in(scene.same({2})).shared_bytes, page_bytes);
  scene.other.check_content();
}

// To copy it again would write behind whoever has it as well.
TEST(a_shared_page_that_is_wrong_is_found_and_left_alone) {
  Scene scene;
  Bench& bench = scene.machine.bench;
  CHECK_THROWS(DamagedImage, scene.swap_in(scene.same({0, 1})));  // it is not the same
  scene.other.check_out();
  scene.one.check_content();
  const DevicePtr place = scene.one.weights().address() + 2 * page_bytes;
  CHECK_OK(bench->set_access(place, page_bytes));
  bench.write(place + 77, {1});
  const auto behind_one = scene.one.memory.mapped_pages(scene.one.weights());
  try {
    scene.swap_in(scene.same());
    CHECK(false);
  } catch (const DamagedImage& error) {
    CHECK(error.pages() == std::vector<PageHandle>{behind_one[2]->handle()});
  }
  scene.other.check_out();
  CHECK_EQ(bench.read(place + 77, 1)[0], 1);
  // Nor are its own that stayed.
  scene.one.swap_out(4);
  CHECK_THROWS(DamagedImage, scene.one.swap_in());
  scene.one.cool(4);
  scene.one.swap_in();
  scene.one.check_content();
  CHECK_EQ(scene.swap_in(scene.same()).shared_bytes, 2 * page_bytes);
  scene.other.check_content();
}

TEST(a_fault_while_pages_are_shared_leaves_the_others_as_they_are) {
  for (std::uint64_t nth = 1;; ++nth) {
    Scene scene;
    const auto shared = scene.same();
    auto own = scene.machine.acquire(2, scene.other.memory.pages_needed() - shared.size());
    scene.machine.plan->arm(nth, Status::unknown, false);
    bool failed = false;
    try {
      scene.other.memory.swap_in(own, 0, {}, shared);
    } catch (const DriverError&) {
      failed = true;
    }
    scene.machine.plan->disarm();
    scene.one.check_content();
    if (!failed) break;
    scene.other.check_out();
    scene.other.memory.swap_in(own, 0, {}, shared);
    scene.other.check_content();
  }
}

// A model that goes out in parts: what has nothing to be saved first, all of it in the end, also
// after a failure.
#include <array>
#include <random>

#include "model_bench.h"

using namespace gpupool;

namespace {

constexpr std::size_t machine_pages = 14, model_pages = 9;
constexpr std::array verifies{Verify::off, Verify::sample, Verify::always};

// Of nine pages, four of which a step has written to: those of a runtime and of graphs.
struct Scene : Machine {
  explicit Scene(Verify verify = Verify::always) : Machine(machine_pages), a(*this, 1, verify) {
    a.add_all();
    a.add(Tag::cudagraph, 3 * page_bytes);
    soil(0xEE);
    a.swap_in();
    a.write_all(1);
    a.swap_out();
    a.swap_in();
    a.write(1, 10, {0, 100'000});
    a.write(4, 11, {0, 3 * page_bytes});
  }
  // What goes is at once somebody else's.
  std::size_t drain(std::size_t keep = 0) {
    const std::size_t gone = a.memory.drain(keep).size();
    if (gone > 0) {
      a.give_back();
      soil(0xEE);
    }
    return gone;
  }
  void leave(std::size_t keep = 0) {
    while (drain(keep) > 0) {
    }
    a.swap_out(keep);
  }
  // It comes back as it was, whatever became of its pages.
  void check_back() {
    CHECK(!a.memory.resident() && !a.memory.torn());
    soil(0xEE);
    a.swap_in();
    a.check_content();
  }
  Subject a;
};

}  // namespace

TEST(what_need_not_be_saved_goes_before_anything_is_copied) {
  for (const Verify verify : verifies) {
    Scene scene(verify);
    scene.plan->arm_call(DriverCall::copy_to_host, 1, 1, Status::unknown);
    CHECK_EQ(scene.drain(), 5);
    CHECK_EQ(scene.plan->injected(), 0);
    CHECK(scene.a.memory.torn() && !scene.a.memory.resident());
    CHECK_EQ(scene.pool.free_pages(), machine_pages - 4);
    scene.plan->disarm();
    CHECK_EQ(scene.drain(), 1);  // the runtime
    CHECK_EQ(scene.drain(), 0);
    const SwapReport report = scene.a.swap_out();
    CHECK_EQ(report.pages, model_pages);
    CHECK_EQ(report.copied_bytes, 100'000 + 3 * page_bytes);
    CHECK(report.total_ns >= report.copy_ns + report.map_ns);
    scene.a.check_out();
    scene.check_back();
  }
}

// Kernels of other models may run long: they are waited for once, and again after a failure alone.
TEST(only_the_first_part_waits_for_the_device) {
  for (const Verify verify : verifies) {
    Scene scene(verify);
    CHECK_EQ(scene.drain(), 5);
    scene.plan->arm_call(DriverCall::context_synchronize, 1, 1, Status::unknown);
    CHECK_EQ(scene.drain(), 1);
    scene.a.swap_out();
    CHECK_EQ(scene.plan->injected(), 0);
    scene.check_back();
  }
}

TEST(what_failed_as_it_left_goes_as_a_whole_once_the_device_has_ended) {
  for (const Verify verify : verifies) {
    Scene scene(verify);
    CHECK_EQ(scene.drain(2), 3);
    scene.plan->arm_call(DriverCall::copy_to_host, 1, 1, Status::unknown);
    CHECK_THROWS(DriverError, scene.drain(2));
    CHECK_EQ(scene.drain(2), 0);
    scene.plan->arm_call(DriverCall::context_synchronize, 1, 1, Status::unknown);
    CHECK_THROWS(DriverError, scene.a.swap_out(2));
    const SwapReport report = scene.a.swap_out(2);
    CHECK_EQ(report.pages, model_pages);
    CHECK_EQ(report.copied_bytes, 100'000 + 3 * page_bytes);
    scene.check_back();
  }
}

TEST(a_model_with_one_kind_of_regions_goes_as_a_whole) {
  Machine machine(machine_pages);
  for (const Tag tag : {Tag::weights, Tag::runtime}) {
    Subject a(machine, 1);
    a.add(tag, 2 * page_bytes);
    a.add(tag, page_bytes);
    a.swap_in();
    CHECK(a.memory.drain().empty());
    CHECK(a.memory.resident());
    CHECK_EQ(a.swap_out().pages, 3);
  }
}

TEST(what_is_kept_does_not_go) {
  for (std::size_t keep = 0; keep <= 8; ++keep) {
    Scene scene;
    scene.leave(keep);
    CHECK_EQ(scene.a.memory.warm_pages(), keep);
    scene.check_back();
  }
}

// Not even where swap_out is told to keep them.
TEST(what_has_gone_is_not_kept) {
  Scene scene;
  CHECK_EQ(scene.drain(1), 4);
  scene.a.swap_out(4);
  CHECK_EQ(scene.a.memory.warm_pages(), 1);
  scene.check_back();
}

TEST(a_drained_model_allows_only_the_way_out) {
  Scene scene;
  ModelMemory& memory = scene.a.memory;
  CHECK_EQ(scene.drain(), 5);
  CHECK_THROWS(UsageError, memory.swap_in({}));
  CHECK_THROWS(UsageError, memory.warm({}));
  CHECK_THROWS(UsageError, memory.cool(0));
  CHECK_THROWS(UsageError, memory.add_region(Tag::weights, 1, -1));
  CHECK_THROWS(UsageError, memory.remove_region(*scene.a.regions[0]));
  CHECK_THROWS(UsageError, memory.resize(*scene.a.regions[1], 1, {}, 0, -1));
  CHECK_THROWS(UsageError, memory.mark_written(*scene.a.regions[0], {{0, 1}}));
  CHECK_THROWS(UsageError, memory.adopt_image(*scene.a.regions[0]));
  CHECK_THROWS(UsageError, memory.close());
  CHECK_EQ(memory.warm_pages(), 0);
  scene.a.swap_out();
  CHECK_THROWS(UsageError, memory.drain());
  scene.check_back();
}

TEST(what_an_audit_found_is_reported_after_a_failure_too) {
  Scene scene;
  scene.bench.write(scene.a.regions[0]->address() + 1000, Bytes(8, 0x5A));  // through no door
  CHECK_EQ(scene.drain(1), 4);
  scene.plan->arm(1, Status::unknown, false);
  CHECK_THROWS(DriverError, scene.a.swap_out(1));
  CHECK(scene.a.memory.torn());
  const SwapReport report = scene.a.swap_out(1);
  CHECK_EQ(report.unmarked_bytes, Subject::chunk_bytes);
  CHECK_EQ(report.pages, model_pages);  // after a failure none stays
  scene.check_back();
  CHECK_EQ(scene.a.swap_out().unmarked_bytes, 0);
}

// Resident as before, or what is left goes at the next attempt: never with a byte lost.
TEST(a_drain_fails_at_every_call) {
  for (const Verify verify : {Verify::off, Verify::always}) {
    for (const std::size_t keep : {0, 6}) {
      for (const bool persistent : {false, true}) {
        for (std::uint64_t nth = 1;; ++nth) {
          CHECK(nth < 200);
          Scene scene(verify);
          std::size_t gone = 0;
          bool failed = false;
          scene.plan->arm(nth, Status::unknown, persistent);
          try {
            for (std::size_t more = 1; more > 0; gone += more) {
              more = scene.a.memory.drain(keep).size();
            }
            scene.a.memory.swap_out(keep);
          } catch (const DriverError&) {
            failed = true;
          }
          const std::uint64_t injected = scene.plan->injected();
          scene.plan->disarm();
          CHECK_EQ(failed, injected > 0);
          if (gone > 0 && failed) CHECK(scene.a.memory.torn());
          if (!persistent && gone == 0) CHECK_EQ(scene.a.memory.resident(), failed);
          if (scene.a.memory.resident()) scene.a.check_content();
          scene.a.give_back();
          scene.soil(0xEE);
          if (failed) scene.leave(keep);
          scene.a.swap_in();
          scene.a.expected[3].assign(page_bytes, 0);  // the workspace
          scene.a.check_content();
          scene.a.swap_out();
          CHECK_EQ(scene.pool.free_pages(), machine_pages);
          if (!failed) break;
        }
      }
    }
  }
}

TEST(any_model_leaves_in_any_parts) {
  std::mt19937_64 random(1);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  for (int round = 0; round < 40; ++round) {
    Machine machine(machine_pages);
    Subject a(machine, 1, verifies.at(below(3)));
    for (std::size_t i = 0, count = 1 + below(4); i < count; ++i) {
      const std::array tags{Tag::weights, Tag::runtime, Tag::cudagraph, Tag::kv_cache,
                            Tag::workspace};
      a.add(tags.at(below(5)), 1 + below(3 * page_bytes));
    }
    for (std::uint64_t turn = 0; turn < 6; ++turn) {
      machine.soil(0xEE);
      a.swap_in();
      a.check_content();
      for (std::size_t i = 0; i < a.regions.size(); ++i) {
        const std::size_t begin = below(a.regions[i]->bytes());
        const std::size_t end = begin + 1 + below(a.regions[i]->bytes() - begin);
        if (below(2) == 0) a.write(i, 100 * turn + i, {begin, end});
      }
      if (below(3) == 0) machine.plan->arm(1 + below(12), Status::unknown, below(2) == 0);
      const std::size_t pages = a.memory.pages_needed();
      std::size_t gone = 0;
      for (bool out = false; !out;) {
        const std::size_t keep = below(4);
        try {
          for (std::size_t parts = below(6); parts > 0; --parts) {
            gone += a.memory.drain(keep).size();
          }
          a.memory.swap_out(keep);
          out = true;
        } catch (const DriverError&) {
          machine.plan->disarm();
          if (a.memory.resident()) CHECK_EQ(gone, 0);
        }
        a.give_back();
        machine.soil(0xEE);
      }
      machine.plan->disarm();
      CHECK(!a.memory.resident() && !a.memory.torn() && gone <= pages);
      for (std::size_t i = 0; i < a.regions.size(); ++i) {
        if (a.regions[i]->image() == nullptr) a.expected[i].assign(a.expected[i].size(), 0);
      }
    }
  }
}

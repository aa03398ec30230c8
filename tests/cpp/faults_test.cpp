// Every driver call of every operation fails once, and from then on: what is left is the old state
// or the new one, content is right, and the next operation works.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "mapped_files.h"
#include "model_bench.h"

using namespace gpupool;

namespace {

constexpr std::size_t budget_pages = 14;  // two models of six, and room to shift pages

struct Scene : Machine {
  Scene() : Machine(budget_pages), a(*this, 1), b(*this, 2) {
    a.add_all();
    a.swap_in();
    a.write_all(1000);
    a.swap_out();
    b.add_all();
    soil(0xEE);
  }
  // Whatever the fault left, the driver works again: both models come and go as ever.
  void check_usable() {
    plan->disarm();
    if (a.memory.torn()) a.swap_out();
    if (a.memory.resident()) {
      a.check_content();
      a.swap_out();
    }
    a.check_out();
    b.swap_in();
    b.check_content();  // zeros: nothing of a is left in the pages
    a.swap_in();
    a.check_content();
    a.write(2, 77, {500, 9000});
    a.swap_out();
    b.swap_out();
    a.swap_in();
    a.check_content();
    a.swap_out();
    CHECK_EQ(pool.free_pages(), budget_pages);
  }
  Subject a, b;
};

// Runs `prepare`, then `attempt` with its n-th driver call failing, for n = 1, 2, ... until no
// call is left to fail. `after` sees whether the attempt failed, before the fault is lifted.
template <typename Prepare, typename Attempt, typename After>
void for_every_fault(Prepare prepare, Attempt attempt, After after) {
  for (const bool persistent : {false, true}) {
    for (std::uint64_t nth = 1;; ++nth) {
      CHECK(nth < 200);
      Scene scene;
      prepare(scene);
      scene.plan->arm(nth, Status::unknown, persistent);
      bool failed = false;
      try {
        attempt(scene);
      } catch (const DriverError& error) {
        CHECK_EQ(error.status(), Status::unknown);
        failed = true;
      }
      const std::uint64_t injected = scene.plan->injected();
      after(scene, failed, persistent);
      scene.check_usable();
      if (injected == 0) {
        CHECK(!failed);
        CHECK(nth > 1);
        break;
      }
    }
  }
}

}  // namespace

TEST(swap_in_fails_at_every_call) {
  for_every_fault([](Scene&) {}, [](Scene& scene) { scene.a.swap_in(); },
                  [](Scene& scene, bool failed, bool persistent) {
                    CHECK_EQ(scene.a.memory.resident(), !failed);
                    // One fault alone never keeps a model from going back to where it was.
                    if (!persistent) CHECK(!scene.a.memory.torn());
                    if (failed && !persistent) scene.a.check_out();
                  });
}

TEST(swap_out_fails_at_every_call) {
  for_every_fault(
      [](Scene& scene) {
        scene.a.swap_in();
        scene.a.write(0, 1, {10, 20});
        scene.a.write(1, 2, {0, 100});
        scene.a.write(2, 3, {page_bytes - 5, page_bytes + 5});
      },
      [](Scene& scene) { scene.a.swap_out(); },
      [](Scene& scene, bool failed, bool persistent) {
        if (!persistent) {
          CHECK_EQ(scene.a.memory.resident(), failed);
          CHECK(!scene.a.memory.torn());
        }
        if (scene.a.memory.resident()) scene.a.check_content();
      });
}

TEST(a_model_that_failed_to_leave_may_be_written_again) {
  for_every_fault([](Scene& scene) { scene.a.swap_in(); }, [](Scene& scene) { scene.a.swap_out(); },
                  [](Scene& scene, bool, bool persistent) {
                    scene.plan->disarm();
                    // While the driver refused to wait, copies to the image may still run.
                    if (!persistent && scene.a.memory.resident()) scene.a.write_all(4000);
                  });
}

TEST(add_region_fails_at_every_call) {
  for_every_fault([](Scene&) {}, [](Scene& scene) { scene.a.add(Tag::weights, page_bytes - 1); },
                  [](Scene& scene, bool failed, bool) {
                    CHECK_EQ(scene.a.memory.pages_needed(), failed ? 6 : 7);
                    scene.a.check_out();
                  });
}

TEST(a_new_model_fails_at_every_call) {
  for_every_fault([](Scene&) {}, [](Scene& scene) { ModelMemory(scene.faulty, page_bytes, mib); },
                  [](Scene&, bool, bool) {});
}

TEST(acquiring_pages_fails_at_every_call) {
  for_every_fault([](Scene&) {},
                  [](Scene& scene) {
                    PagePool fresh(scene.faulty, 3 * page_bytes, page_bytes);
                    static_cast<void>(fresh.acquire(1, 3));
                  },
                  [](Scene&, bool, bool) {});
}

TEST(a_torn_model_allows_only_the_way_out) {
  Scene scene;
  scene.plan->arm(4, Status::unknown, true);
  CHECK_THROWS(DriverError, scene.a.swap_in());
  CHECK(scene.a.memory.torn() && !scene.a.memory.resident());
  CHECK_THROWS(UsageError, scene.a.memory.swap_in({}));
  CHECK_THROWS(UsageError, scene.a.memory.add_region(Tag::weights, 1, -1));
  CHECK_THROWS(UsageError, scene.a.memory.mark_written(*scene.a.regions[0], {{0, 1}}));
  CHECK_THROWS(UsageError, scene.a.memory.adopt_image(*scene.a.regions[0]));
  CHECK_THROWS(DriverError, scene.a.swap_out());
  CHECK(scene.a.memory.torn());
  scene.check_usable();
}

TEST(a_torn_model_may_end) {
  Scene scene;
  {
    Subject c(scene, 3);
    c.add(Tag::weights, page_bytes);
    scene.plan->arm(2, Status::unknown, true);
    CHECK_THROWS(DriverError, c.swap_in());
    CHECK(c.memory.torn());
    scene.plan->disarm();
  }
  scene.check_usable();
}

TEST(nothing_is_left_behind) {
  const auto descriptors = [] {
    const auto all = std::filesystem::directory_iterator("/proc/self/fd");
    return std::distance(begin(all), end(all));
  };
  const auto before = descriptors();
  CHECK_EQ(memfds_mapped("gpupool"), 0);
  for (std::uint64_t nth = 1; nth < 30; nth += 3) {
    Scene scene;
    scene.plan->arm(nth, Status::unknown, false);
    try {
      scene.a.swap_in();
      scene.a.swap_out();
    } catch (const DriverError&) {
      CHECK_EQ(scene.plan->injected(), 1);
    }
  }
  CHECK_EQ(descriptors(), before);
  CHECK_EQ(memfds_mapped("gpupool"), 0);
}

// A process makes three calls, the second of which is refused, and tells when each is over: how
// many were, and whether it was killed.
TEST(a_process_is_killed_at_the_call_that_was_armed) {
  const auto life = [](std::uint64_t nth, bool after) {
    int told[2];
    CHECK_EQ(pipe(told), 0);
    const pid_t child = fork();
    if (child == 0) {
      auto plan = std::make_shared<FaultPlan>();
      const DriverPtr driver = with_faults(open_host_driver(), plan);
      plan->arm_kill(nth, after);
      std::size_t bytes = 0;
      PageHandle page = 0;
      for (int call = 0; call < 3; ++call) {
        const Status status =
            call == 1 ? driver->page_create(&page, 1) : driver->page_granularity(&bytes);
        if (write(told[1], &status, 1) != 1) _exit(1);
      }
      plan->disarm();
      _exit(driver->page_granularity(&bytes) == Status::success ? 0 : 1);
    }
    close(told[1]);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    char each[4];
    const auto calls = read(told[0], each, sizeof each);
    close(told[0]);
    const bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    CHECK(killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
    return std::pair(static_cast<int>(calls), killed);
  };
  CHECK(life(1, false) == std::pair(0, true));
  CHECK(life(3, false) == std::pair(2, true));
  CHECK(life(1, true) == std::pair(0, true));
  CHECK(life(2, true) == std::pair(2, true));  // a call that was refused does not count
  CHECK(life(3, true) == std::pair(3, false));
  CHECK(life(4, false) == std::pair(3, false));
}

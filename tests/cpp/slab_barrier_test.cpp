// The barrier that a slab is taken by. That threads meet badly without it is a matter of a
// processor's store buffers, which no test can hold still; what can be seen is that the kernel is
// asked for it once for each slab taken, and when.
#include <dlfcn.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <fstream>
#include <functional>
#include <thread>

#include "slab_bench.h"

using namespace gpupool;

namespace {

std::atomic<int> barriers{0};
thread_local std::function<void()> before_barrier;

}  // namespace

// In the C library's stead, to see the barriers by which slabs are taken.
extern "C" long syscall(long number, ...) noexcept {
  using Syscall = long (*)(long, ...);
  static const auto real = reinterpret_cast<Syscall>(dlsym(RTLD_NEXT, "syscall"));
  va_list list;
  va_start(list, number);
  long arguments[6];
  for (long& argument : arguments) argument = va_arg(list, long);
  va_end(list);
  if (number == SYS_membarrier && arguments[0] == MEMBARRIER_CMD_PRIVATE_EXPEDITED) {
    ++barriers;
    if (before_barrier) before_barrier();
  }
  return real(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
              arguments[5]);
}

// The order that the protocol of owners rests on (see slab_inline.h): the owner is out, then there
// is a barrier. The barrier itself is the kernel's; that it is asked for, and when, is seen here.
TEST(a_slab_is_taken_by_a_barrier_behind_the_change_of_owner) {
  for (int round = 0; round < 100; ++round) {
    Scene scene({{64}, 4});
    std::atomic<bool> holding{false}, go{false}, entered{false}, allocated{false}, taken{false};
    std::atomic<pid_t> id{0};
    BlockHandle given{};
    std::thread owner([&] {
      id = static_cast<pid_t>(syscall(SYS_gettid, 0, 0, 0, 0, 0, 0));
      static_cast<void>(scene.slabs->allocate(0));
      given = scene.slabs->allocate(0);
      holding = true;
      while (!go && !taken) std::this_thread::yield();
      entered = true;
      static_cast<void>(scene.slabs->allocate(0));
      allocated = true;
    });
    while (!holding) std::this_thread::yield();
    // At the barrier its owner may not find the slab to be its own: it must wait for the lock.
    const auto sleeps = [&] {
      std::ifstream status("/proc/self/task/" + std::to_string(id) + "/stat");
      std::string line;
      std::getline(status, line);
      const std::size_t name_end = line.rfind(')');
      return name_end != std::string::npos && line.compare(name_end, 3, ") S") == 0;
    };
    bool waited = false;
    before_barrier = [&] {
      go = true;
      while (!entered) std::this_thread::yield();
      while (!allocated && !waited) waited = sleeps();
    };
    const int before = barriers;
    scene.slabs->free(given);
    before_barrier = nullptr;
    taken = true;
    owner.join();
    CHECK_EQ(barriers - before, 1);
    CHECK(waited);
    CHECK_EQ(scene.slabs->statistics().slabs_taken, 1);
    CHECK_EQ(scene.slabs->statistics().shapes[0].blocks_live, 2);
  }
}

// Huge pages are put by a few threads: each once, none after a refusal, and no thread stays.
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <latch>
#include <mutex>
#include <thread>

#include "bench.h"
#include "driver/system_memory.h"
#include "failing_new.h"
#include "refuse.h"

using namespace gpupool;

namespace {

// Threads that have asked for a huge page and have not ended.
std::atomic<int> alive{0};
struct Alive {
  Alive() { ++alive; }
  ~Alive() { --alive; }
  void touch() {}
};
thread_local Alive here;

// A memfd, and what is answered to who wants a huge page of it; nothing here allocates.
class Asked {
 public:
  explicit Asked(std::size_t bytes) : bytes_(bytes) {
    fd_ = memfd_create("huge-pages", MFD_CLOEXEC);
    CHECK_EQ(ftruncate(fd_, static_cast<off_t>(bytes)), 0);
    view_ =
        static_cast<std::byte*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0));
    refuse::answer_madvise([this](std::byte* at) { return answer(at); });
  }
  ~Asked() {
    refuse::answer_madvise(nullptr);
    munmap(view_, bytes_);
    close(fd_);
  }
  void put() { put_huge_pages(fd_, view_, bytes_); }
  // Each of the first so many, and no other.
  void check_each_once(std::size_t pages) const {
    for (std::size_t i = 0; i < times.size(); ++i) CHECK_EQ(times[i], i < pages ? 1 : 0);
  }
  std::size_t count = 0;
  std::array<int, 256> times{};  // that each page was asked for
  std::array<std::thread::id, 8> by;
  std::size_t by_count = 0;
  std::size_t refused = ~std::size_t{0};  // this one, in the order of asking, and all after it
  std::latch* meeting = nullptr;          // at which the first of each thread waits

 private:
  int answer(std::byte* at) {
    here.touch();
    bool waits = false;
    int result = 0;
    {
      const std::lock_guard lock(mutex_);
      result = count++ < refused ? 0 : -1;
      ++times.at(static_cast<std::size_t>(at - view_) / huge_page_bytes);
      const auto* const end = by.data() + by_count;
      if (std::find(by.data(), const_cast<std::thread::id*>(end), std::this_thread::get_id()) ==
          end) {
        by.at(by_count++) = std::this_thread::get_id();
        waits = meeting != nullptr;
      }
    }
    if (waits) meeting->arrive_and_wait();
    return result;
  }
  std::size_t bytes_;
  int fd_ = -1;
  std::byte* view_ = nullptr;
  std::mutex mutex_;
};

}  // namespace

TEST(each_huge_page_is_put_once) {
  here.touch();
  for (const std::size_t pages : {0, 1, 2, 15, 16, 31, 32, 33, 100, 200}) {
    Asked asked(pages * huge_page_bytes + 4096);
    asked.put();
    CHECK_EQ(alive.load(), 1);
    asked.check_each_once(pages);
    CHECK(asked.by_count <= (pages < 32 ? 1 : 4));
  }
}

TEST(several_threads_put_them) {
  if (std::thread::hardware_concurrency() < 2) return;
  here.touch();
  Asked asked(40 * huge_page_bytes);
  std::latch meeting(2);
  asked.meeting = &meeting;
  asked.put();
  CHECK_EQ(alive.load(), 1);
  asked.check_each_once(40);
  CHECK_EQ(asked.by_count, 2);
}

TEST(what_the_system_refuses_is_not_asked_for_again_and_again) {
  here.touch();
  for (const std::size_t nth : {0, 1, 7, 50, 99}) {
    Asked asked(100 * huge_page_bytes);
    asked.refused = nth;
    asked.put();
    CHECK(asked.count > nth && asked.count <= nth + 4);  // each thread may be at one more
  }
  for (const int nth : {1, 8, 100}) {
    Asked asked(100 * huge_page_bytes);
    refuse::nth(refuse::Call::fallocate, nth, ENOSPC);
    asked.put();
    CHECK_EQ(refuse::done(), 1);
    CHECK(asked.count < 100 && asked.count + 1 >= static_cast<std::size_t>(nth));
  }
  CHECK_EQ(alive.load(), 1);
}

TEST(threads_that_cannot_be_started_are_done_without) {
  here.touch();
  for (std::uint64_t nth = 1;; ++nth) {
    Asked asked(100 * huge_page_bytes);
    fail_allocations(nth, true);
    asked.put();
    bad_alloc_at = 0;
    CHECK_EQ(alive.load(), 1);
    asked.check_each_once(100);
    if (bad_allocs == 0) break;
    CHECK(asked.by_count <= nth);
  }
}

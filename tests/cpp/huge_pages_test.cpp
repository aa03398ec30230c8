// Huge pages are put by a few threads: each once, small ones after a refusal, and no thread stays.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <latch>
#include <mutex>
#include <numeric>
#include <optional>
#include <random>
#include <thread>
#include <utility>

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

constexpr int collapse = 25, populate = 23;  // of madvise(2)
constexpr std::size_t none = ~std::size_t{0};

// A memfd, and what is answered to who wants a huge page of it, or small ones; nothing here
// allocates. A huge page is granted without a change, small ones are the system's own.
class Asked {
 public:
  explicit Asked(std::size_t bytes, std::size_t misplaced = 0) : bytes_(bytes) {
    fd_ = memfd_create("huge-pages", MFD_CLOEXEC);
    CHECK_EQ(ftruncate(fd_, static_cast<off_t>(bytes)), 0);
    kept_ = keep_addresses(bytes + misplaced, huge_page_bytes);
    view_ = kept_ + misplaced;
    CHECK(map_file(view_, bytes, PROT_READ | PROT_WRITE, fd_));
    refuse::answer_madvise([this](std::byte* at, int advice) { return answer(at, advice); });
  }
  ~Asked() {
    refuse::answer_madvise(nullptr);
    munmap(kept_, bytes_ + static_cast<std::size_t>(view_ - kept_));
    close(fd_);
  }
  void put() { put_huge_pages(fd_, view_, bytes_); }
  // Each of the first so many, and no other.
  void check_each_once(std::size_t pages) const {
    for (std::size_t i = 0; i < times.size(); ++i) CHECK_EQ(times[i], i < pages ? 1 : 0);
  }
  // Of the small pages of the nth, those that have been touched.
  [[nodiscard]] std::size_t there(std::size_t page) const {
    std::array<unsigned char, huge_page_bytes / 4096> of{};
    CHECK_EQ(mincore(view_ + page * huge_page_bytes, huge_page_bytes, of.data()), 0);
    return static_cast<std::size_t>(
        std::count_if(of.begin(), of.end(), [](unsigned char byte) { return (byte & 1) != 0; }));
  }
  [[nodiscard]] std::byte* view() const { return view_; }
  std::size_t count = 0;
  std::array<int, 256> times{};  // that each page was asked for
  std::array<int, 256> small{};  // of those, in small ones
  std::array<bool, 256> granted{};
  std::array<std::thread::id, 8> by;
  std::size_t by_count = 0;
  std::size_t refused = none;  // this one, in the order of asking, and all after it
  int refusal = EINVAL;
  int small_refusal = 0;          // 0: small ones are not refused
  std::latch* meeting = nullptr;  // at which the first of each thread waits

 private:
  std::optional<int> answer(std::byte* at, int advice) {
    here.touch();
    bool waits = false;
    std::optional<int> result;
    {
      const std::lock_guard lock(mutex_);
      const std::size_t page = static_cast<std::size_t>(at - view_) / huge_page_bytes;
      if (advice == populate) {
        ++small.at(page);
        if (small_refusal != 0) result = small_refusal;
      } else {
        CHECK_EQ(advice, collapse);
        result = count++ < refused ? 0 : refusal;
        ++times.at(page);
        granted.at(page) = result == 0;
      }
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
  std::byte* kept_ = nullptr;
  std::byte* view_ = nullptr;
  std::mutex mutex_;
};

constexpr std::size_t whole = huge_page_bytes / 4096;

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
  for (const std::size_t misplaced : {0, 4096}) {  // where all that can be put are small ones
    Asked asked(40 * huge_page_bytes, misplaced);
    std::latch meeting(2);
    asked.meeting = &meeting;
    asked.put();
    CHECK_EQ(alive.load(), 1);
    asked.check_each_once(misplaced == 0 ? 40 : 0);
    CHECK_EQ(asked.by_count, 2);
  }
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
  for (const int error : {EBUSY, ENOMEM}) {  // of a huge page, and then of small ones
    Asked asked(100 * huge_page_bytes);
    asked.refused = 10;
    asked.refusal = error;
    asked.small_refusal = ENOMEM;
    asked.put();
    CHECK(asked.count <= 14);
    CHECK(std::accumulate(asked.small.begin(), asked.small.end(), 0) <= (error == EBUSY ? 0 : 4));
  }
  CHECK_EQ(alive.load(), 1);
}

// Whichever of them the system has, what was there before stays and all of it has been touched.
TEST(where_there_are_no_huge_pages_small_ones_are_put) {
  here.touch();
  std::mt19937_64 random(1);
  constexpr std::size_t pages = 36;
  for (int round = 0; round < 24; ++round) {
    Asked asked(pages * huge_page_bytes + 4096, round % 4 == 3 ? 4096 : 0);
    asked.refused = round < 2 ? 0 : random() % (pages + 1);
    asked.refusal = std::array{EINVAL, ENOMEM, EAGAIN}.at(random() % 3);
    asked.small_refusal = round % 2 == 0 ? 0 : EINVAL;  // before Linux 5.14
    std::array<std::pair<std::size_t, std::byte>, 32> had;
    for (auto& [at, byte] : had) {
      at = random() % (pages * huge_page_bytes);
      byte = static_cast<std::byte>(random());
      asked.view()[at] = byte;
    }
    for (auto& [at, byte] : had) byte = asked.view()[at];
    asked.put();
    for (std::size_t page = 0; page < pages; ++page) {
      CHECK_EQ(asked.small.at(page), asked.granted.at(page) ? 0 : 1);
      if (!asked.granted.at(page)) CHECK_EQ(asked.there(page), whole);
    }
    for (const auto& [at, byte] : had) CHECK_EQ(asked.view()[at], byte);
  }
  CHECK_EQ(alive.load(), 1);
}

// Of a system without either, memory that it has no more of must not be touched.
TEST(small_pages_that_cannot_be_had_are_not_touched) {
  here.touch();
  // Of each page the first asks for one small page, the second for all.
  for (const auto& [nth, touched] : {std::pair{2, 0}, {9, 4}, {10, 4}}) {
    Asked asked(10 * huge_page_bytes);
    asked.refused = 0;
    asked.small_refusal = EINVAL;
    refuse::nth(refuse::Call::fallocate, nth, ENOSPC);
    asked.put();
    CHECK_EQ(refuse::done(), 1);
    for (int page = 0; page < 10; ++page) {
      CHECK_EQ(asked.there(static_cast<std::size_t>(page)) == whole, page < touched);
    }
  }
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

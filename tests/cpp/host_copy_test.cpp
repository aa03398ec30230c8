// Copies of the host driver: every way to make one, at any address, with nothing around it touched.
#include "driver/host_copy.h"

#include <sys/mman.h>

#include <numeric>

#include "batch_bench.h"
#include "digest/streaming.h"

using namespace gpupool;

namespace {

using host::CopyPath;

constexpr std::uint8_t untouched = 0xee;
constexpr std::size_t around = 2 * line_bytes;

// Memory to copy from and to, and what is around that.
class Places {
 public:
  explicit Places(std::size_t most) : content_(pattern(1, most + around)), target_(most + room) {
    const auto address = reinterpret_cast<std::uintptr_t>(target_.data());
    start_ = target_.data() + (0 - address) % line_bytes + around;
    std::fill(target_.begin(), target_.end(), untouched);
  }
  // From `from` bytes behind the start of a line to `to` bytes behind that of another.
  template <typename Copy>
  void check(std::size_t bytes, std::size_t to, std::size_t from, const Copy& copy) {
    const auto address = reinterpret_cast<std::uintptr_t>(content_.data());
    const std::uint8_t* source = content_.data() + (0 - address) % line_bytes + from;
    std::uint8_t* target = start_ + to;
    copy(reinterpret_cast<std::byte*>(target), reinterpret_cast<const std::byte*>(source), bytes);
    CHECK(std::memcmp(target, source, bytes) == 0);
    for (std::size_t i = 1; i <= around; ++i) CHECK_EQ(*(target - i), untouched);
    for (std::size_t i = 0; i < around; ++i) CHECK_EQ(target[bytes + i], untouched);
    std::memset(target, untouched, bytes);
  }

 private:
  static constexpr std::size_t room = 2 * around + 2 * line_bytes;
  Bytes content_, target_;
  std::uint8_t* start_;
};

// Memory between two pages that nobody may touch.
class Walled {
 public:
  explicit Walled(std::size_t bytes) : bytes_(bytes) {
    void* const room =
        mmap(nullptr, bytes + 2 * wall, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED);
    data_ = static_cast<std::byte*>(room) + wall;
    CHECK_EQ(mprotect(data_, bytes, PROT_READ | PROT_WRITE), 0);
  }
  ~Walled() { munmap(data_ - wall, bytes_ + 2 * wall); }
  Walled(const Walled&) = delete;
  Walled& operator=(const Walled&) = delete;
  // The first `bytes` of it, or the last.
  std::byte* place(bool last, std::size_t bytes) const {
    return last ? data_ + bytes_ - bytes : data_;
  }

 private:
  static constexpr std::size_t wall = 4096;
  std::size_t bytes_;
  std::byte* data_;
};

}  // namespace

TEST(every_path_copies_a_few_lines_at_any_address) {
  Places places(1024);
  for (const CopyPath& path : host::copy_paths()) {
    for (std::size_t to = 0; to < line_bytes; ++to) {
      for (std::size_t from = 0; from < line_bytes; ++from) {
        for (const std::size_t bytes : {0, 1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300}) {
          places.check(bytes, to, from, path.run);
        }
      }
      for (std::size_t bytes = 0; bytes < 1024; ++bytes) {
        places.check(bytes, to, bytes % line_bytes, path.run);
      }
    }
  }
}

// Lines are fetched from several pages in turn: a copy may end anywhere in that.
TEST(every_path_copies_some_pages_of_any_length) {
  std::mt19937_64 random(2);
  Places places(70'000);
  for (const CopyPath& path : host::copy_paths()) {
    for (const std::size_t border : {4096, 16'384, 20'480, 65'536}) {
      for (std::size_t bytes = border - 2 * line_bytes; bytes < border + 2 * line_bytes; ++bytes) {
        places.check(bytes, random() % line_bytes, random() % line_bytes, path.run);
      }
    }
  }
}

TEST(a_copy_is_the_same_on_both_sides_of_where_it_is_large) {
  std::mt19937_64 random(3);
  Places places(streaming_bytes + 256);
  const std::size_t least = streaming_bytes - 2 * line_bytes;
  for (std::size_t bytes = least; bytes < streaming_bytes + 2 * line_bytes; ++bytes) {
    for (const std::size_t to : {std::size_t{0}, random() % line_bytes}) {
      places.check(bytes, to, random() % line_bytes, host::copy_bytes);
    }
  }
  for (std::size_t to = 0; to < line_bytes; ++to) {
    for (std::size_t from = 0; from < line_bytes; ++from) {
      places.check(streaming_bytes + random() % 200, to, from, host::copy_bytes);
    }
  }
}

TEST(no_path_touches_what_is_not_its_own) {
  const Walled source(2 * streaming_bytes), target(2 * streaming_bytes);
  std::vector<std::size_t> sizes(300);
  std::iota(sizes.begin(), sizes.end(), std::size_t{0});
  for (std::size_t i = 0; i < 2 * line_bytes; ++i) sizes.push_back(streaming_bytes - 5 + i);
  for (const CopyPath& path : host::copy_paths()) {
    for (const std::size_t bytes : sizes) {
      for (const bool source_last : {false, true}) {
        for (const bool target_last : {false, true}) {
          std::byte* const from = source.place(source_last, bytes);
          std::byte* const to = target.place(target_last, bytes);
          const auto value = static_cast<int>(bytes % 255 + 1);
          std::memset(from, value, bytes);
          std::memset(to, 0, bytes);
          path.run(to, from, bytes);
          CHECK(std::memcmp(from, to, bytes) == 0);
        }
      }
    }
  }
}

TEST(the_driver_copies_large_and_small_alike) {
  Bench bench;
  const DevicePtr base = bench.mapped(4);
  const std::vector<std::size_t> sizes{100, streaming_bytes - 1, streaming_bytes + 77, 4096,
                                       2 * mib + 3};
  std::size_t all = 0;
  BatchOf there, back;
  for (const std::size_t bytes : sizes) {
    const std::size_t at = all + 33;
    there.add(base + at, bench.staging() + 8 * mib + at + 5, bytes);
    back.add(base + at, bench.staging() + 24 * mib + at + 9, bytes);
    all = at + bytes;
  }
  const Bytes content = pattern(4, all + 100);
  std::memcpy(bench.staging() + 8 * mib + 5, content.data(), content.size());
  std::memset(bench.staging() + 24 * mib, untouched, content.size() + 100);
  CHECK_OK(bench->fill(base, untouched, 4 * page_bytes, bench.stream()));
  CHECK_OK(there.to_device(*bench.driver(), bench.stream()));
  CHECK_OK(back.to_host(*bench.driver(), bench.stream()));
  const Bytes device = bench.read(base, all + 100);
  Bytes expected(all + 100, untouched);
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const std::size_t at = there.device[i] - base;
    std::copy_n(content.begin() + static_cast<long>(at), sizes[i],
                expected.begin() + static_cast<long>(at));
  }
  CHECK(device == expected);
  CHECK(std::memcmp(bench.staging() + 24 * mib + 9, expected.data(), expected.size()) == 0);
}

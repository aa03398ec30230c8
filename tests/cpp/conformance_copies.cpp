// Copies, fills and the host memory they need.
#include <sys/mman.h>

#include <cstdlib>

#include "bench.h"
#include "real_gpu.h"

using namespace gpupool;

namespace {

// Page-aligned host memory that nobody has registered.
struct Plain {
  Plain() : data(static_cast<std::byte*>(std::aligned_alloc(4096, 4 * 4096))) {}
  ~Plain() { std::free(data); }
  Plain(const Plain&) = delete;
  Plain& operator=(const Plain&) = delete;
  std::byte* const data;
};

}  // namespace

TEST(copies_move_exactly_their_bytes) {
  Bench bench;
  const DevicePtr base = bench.mapped(3);
  CHECK_OK(bench->fill(base, 0, 3 * page_bytes, bench.stream()));
  const DevicePtr odd = base + page_bytes - 123;  // over two page borders
  const Bytes content = pattern(6, page_bytes + 1000);
  bench.write(odd, content);
  CHECK(bench.read(odd, content.size()) == content);
  CHECK_EQ(bench.read(odd - 1, 1)[0], 0);
  CHECK_EQ(bench.read(odd + content.size(), 1)[0], 0);
  CHECK_OK(bench->fill(odd + 10, 0x5C, 20, bench.stream()));
  Bytes expected(content.begin(), content.begin() + 40);
  std::fill(expected.begin() + 10, expected.begin() + 30, 0x5C);
  CHECK(bench.read(odd, 40) == expected);
}

TEST(host_memory_is_registered_once) {
  Bench bench;
  const Plain plain;
  CHECK_OK(bench->host_register(plain.data, 8192));
  CHECK_EQ(bench->host_register(plain.data, 8192), Status::host_memory_already_registered);
  CHECK_EQ(bench->host_register(plain.data + 4096, 8192), Status::host_memory_already_registered);
  CHECK_OK(bench->host_unregister(plain.data));
  CHECK_EQ(bench->host_unregister(plain.data), Status::host_memory_not_registered);
}

TEST(memory_beside_registered_memory_can_be_registered) {
  Bench bench;
  const Plain plain;
  CHECK_OK(bench->host_register(plain.data + 4096, 4096));
  CHECK_OK(bench->host_register(plain.data, 4096));
  CHECK_OK(bench->host_register(plain.data + 8192, 4096));
  CHECK_OK(bench->host_unregister(plain.data + 8192));
  CHECK_OK(bench->host_unregister(plain.data));
  CHECK_OK(bench->host_unregister(plain.data + 4096));
}

TEST(no_memory_is_not_registered) {
  Bench bench;
  const Plain plain;
  CHECK_EQ(bench->host_register(nullptr, 4096), Status::invalid_value);
  CHECK_EQ(bench->host_register(plain.data, 0), Status::invalid_value);
}

TEST(memory_that_is_not_there_is_not_registered) {
  Bench bench;
  void* room = mmap(nullptr, 12288, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(room != MAP_FAILED);
  auto* memory = static_cast<std::byte*>(room);
  CHECK_EQ(munmap(memory + 4096, 4096), 0);
  CHECK(bench->host_register(memory, 12288) != Status::success);  // a hole within
  CHECK(bench->host_register(memory, 8192) != Status::success);
  CHECK(bench->host_register(memory + 4096, 4096) != Status::success);
  CHECK(bench->host_register(memory + 4096, 8192) != Status::success);
  CHECK_OK(bench->host_register(memory, 4096));
  CHECK_OK(bench->host_unregister(memory));
  CHECK_EQ(munmap(memory, 12288), 0);
}

TEST(memory_registered_again_can_be_copied_again) {
  Bench bench;
  const DevicePtr base = bench.mapped(1);
  const Plain plain;
  for (int round = 1; round <= 3; ++round) {
    CHECK_OK(bench->host_register(plain.data, 4096));
    std::memset(plain.data, round, 4096);
    CHECK_OK(bench->copy_to_device(base, plain.data, 4096, bench.stream()));
    CHECK_OK(bench->stream_synchronize(bench.stream()));
    CHECK_OK(bench->host_unregister(plain.data));
    CHECK(all_are(bench.read(base, 4096), static_cast<std::uint8_t>(round)));
  }
}

TEST(a_copy_may_be_one_byte) {
  Bench bench;
  const DevicePtr base = bench.mapped(1);
  CHECK_OK(bench->fill(base, 1, 64, bench.stream()));
  bench.write(base + 13, {7});
  CHECK_EQ(bench.read(base + 13, 1)[0], 7);
  CHECK_EQ(bench.read(base + 12, 1)[0], 1);
  CHECK_EQ(bench.read(base + 14, 1)[0], 1);
}

TEST(a_copy_may_end_with_the_mapping) {
  Bench bench;
  const DevicePtr base = bench.mapped(2);
  bench.write(base + page_bytes, pattern(3, page_bytes));
  CHECK(bench.read(base + page_bytes, page_bytes) == pattern(3, page_bytes));
  CHECK_OK(bench->fill(base + 2 * page_bytes - 1, 9, 1, bench.stream()));
  CHECK_EQ(bench.read(base + 2 * page_bytes - 1, 1)[0], 9);
}

TEST(every_value_can_be_filled) {
  Bench bench;
  const DevicePtr base = bench.mapped(1);
  for (int value = 0; value < 256; ++value) {
    CHECK_OK(bench->fill(base + value * 64, static_cast<std::uint8_t>(value), 64, bench.stream()));
  }
  const Bytes seen = bench.read(base, 256 * 64);
  for (std::size_t i = 0; i < seen.size(); ++i) CHECK_EQ(seen[i], i / 64);
}

TEST(a_copy_out_shows_what_came_before_it_on_the_stream) {
  Bench bench;
  const DevicePtr base = bench.mapped(1);
  for (int round = 0; round < 20; ++round) {
    const auto value = static_cast<std::uint8_t>(round);
    CHECK_OK(bench->fill(base, value, page_bytes, bench.stream()));
    CHECK_OK(
        bench->copy_to_host(bench.staging() + round * 4096, base + 4096, 4096, bench.stream()));
  }
  CHECK_OK(bench->stream_synchronize(bench.stream()));
  for (int i = 0; i < 20 * 4096; ++i) CHECK_EQ(bench.staging()[i], std::byte(i / 4096));
}

TEST(two_mappings_of_a_page_show_the_same_bytes) {
  Bench bench;
  std::vector<PageHandle> pages;
  const DevicePtr base = bench.mapped(1, &pages);
  DevicePtr other = 0;
  CHECK_OK(bench->address_reserve(&other, page_bytes));
  CHECK_OK(bench->map(other, page_bytes, pages[0]));
  CHECK_OK(bench->set_access(other, page_bytes));
  bench.write(base, pattern(4, page_bytes));
  CHECK(bench.read(other, page_bytes) == pattern(4, page_bytes));
}

TEST(a_refused_copy_leaves_the_stream_usable) {
  if (left_out_on_a_gpu("filling address 0: cuda.h promises no refusal, and a fault would stay")) {
    return;
  }
  Bench bench;
  const DevicePtr base = bench.mapped(1);
  CHECK(bench->fill(0, 1, 16, bench.stream()) != Status::success);
  CHECK_OK(bench->fill(base, 5, page_bytes, bench.stream()));
  CHECK(all_are(bench.read(base, page_bytes), 5));
}

// Copies and fills: what they need, what they move, and what a late one does.
#include "bench.h"

using namespace gpupool;

namespace {
constexpr Status invalid = Status::invalid_value;
}

TEST(copies_need_access) {
  Bench bench;
  DevicePtr base = 0;
  PageHandle page = 0;
  CHECK_OK(bench->address_reserve(&base, 2 * page_bytes));
  CHECK_OK(bench->page_create(&page, page_bytes));
  const auto refused = [&](DevicePtr address, std::size_t bytes) {
    CHECK_EQ(bench->copy_to_device(address, bench.staging(), bytes, bench.stream()), invalid);
    CHECK_EQ(bench->copy_to_host(bench.staging(), address, bytes, bench.stream()), invalid);
    CHECK_EQ(bench->fill(address, 1, bytes, bench.stream()), invalid);
  };
  refused(base, 16);  // reserved only
  CHECK_OK(bench->map(base, page_bytes, page));
  refused(base, 16);  // mapped only
  CHECK_OK(bench->set_access(base, page_bytes));
  refused(base + page_bytes, 16);      // behind its end
  refused(base + page_bytes - 8, 16);  // across its end
  refused(base, page_bytes + 1);
  refused(base, ~std::size_t{0});
  refused(base - 8, 16);
  refused(0, 16);
  refused(base, 0);
  CHECK(all_are(bench.read(base, page_bytes), 0xA5));  // none of them did anything
}

TEST(copies_need_registered_host_memory) {
  Bench bench;
  const DevicePtr base = bench.mapped(1);
  Bytes memory(8192);
  const auto copy = [&](std::size_t offset, std::size_t bytes) {
    const Status to = bench->copy_to_device(base, memory.data() + offset, bytes, bench.stream());
    const Status from = bench->copy_to_host(memory.data() + offset, base, bytes, bench.stream());
    CHECK_EQ(to, from);
    CHECK_OK(bench->stream_synchronize(bench.stream()));
    return to;
  };
  CHECK_EQ(copy(0, 16), invalid);
  CHECK_OK(bench->host_register(memory.data(), 4096));
  CHECK_OK(copy(0, 4096));
  CHECK_EQ(copy(4000, 97), invalid);
  CHECK_EQ(copy(4096, 1), invalid);
  CHECK_OK(bench->host_unregister(memory.data()));
  CHECK_EQ(copy(0, 16), invalid);
}

TEST(host_memory_is_registered_once) {
  Bench bench;
  Bytes memory(8192);
  constexpr Status again = Status::host_memory_already_registered;
  CHECK_EQ(bench->host_register(nullptr, 4096), invalid);
  CHECK_EQ(bench->host_register(memory.data(), 0), invalid);
  CHECK_EQ(bench->host_register(memory.data(), ~std::size_t{0}), invalid);
  CHECK_OK(bench->host_register(memory.data() + 2048, 4096));
  CHECK_EQ(bench->host_register(memory.data() + 2048, 4096), again);
  CHECK_EQ(bench->host_register(memory.data(), 2049), again);
  CHECK_EQ(bench->host_register(memory.data() + 6143, 1), again);
  CHECK_EQ(bench->host_register(memory.data(), 8192), again);
  CHECK_OK(bench->host_register(memory.data(), 2048));         // just before
  CHECK_OK(bench->host_register(memory.data() + 6144, 2048));  // just behind
  constexpr Status unknown = Status::host_memory_not_registered;
  CHECK_EQ(bench->host_unregister(memory.data() + 1), unknown);
  CHECK_OK(bench->host_unregister(memory.data()));
  CHECK_EQ(bench->host_unregister(memory.data()), unknown);
}

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

TEST(work_on_an_unknown_stream_is_refused) {
  Bench bench;
  const DevicePtr base = bench.mapped(1);
  StreamHandle gone = nullptr;
  CHECK_OK(bench->stream_create(&gone));
  CHECK_OK(bench->stream_destroy(gone));
  CHECK_EQ(bench->fill(base, 0, 16, gone), Status::invalid_handle);
  CHECK_EQ(bench->copy_to_host(bench.staging(), base, 16, gone), Status::invalid_handle);
  CHECK_EQ(bench->copy_to_device(base, bench.staging(), 16, gone), Status::invalid_handle);
}

TEST(use_after_unmap_is_a_sticky_fault) {
  Bench bench;
  const DevicePtr slow = bench.mapped(32), victim = bench.mapped(1);
  for (int i = 0; i < 8; ++i) CHECK_OK(bench->fill(slow, 1, 32 * page_bytes, bench.stream()));
  CHECK_OK(bench->fill(victim, 1, page_bytes, bench.stream()));
  CHECK_OK(bench->unmap(victim, page_bytes));  // while the fill is queued behind the slow ones
  constexpr Status fault = Status::illegal_address;
  CHECK_EQ(bench->stream_synchronize(bench.stream()), fault);
  CHECK_EQ(bench->stream_synchronize(bench.stream()), fault);
  PageHandle page = 0;
  CHECK_EQ(bench->page_create(&page, page_bytes), fault);
  CHECK_EQ(bench->fill(slow, 1, 16, bench.stream()), fault);
  DevicePtr address = 0;
  CHECK_EQ(bench->address_reserve(&address, page_bytes), fault);
}

TEST(a_range_mapped_anew_is_no_excuse_for_lost_access) {
  Bench bench;
  const DevicePtr slow = bench.mapped(32);
  std::vector<PageHandle> pages;
  const DevicePtr victim = bench.mapped(1, &pages);
  for (int i = 0; i < 8; ++i) CHECK_OK(bench->fill(slow, 1, 32 * page_bytes, bench.stream()));
  CHECK_OK(bench->fill(victim, 1, page_bytes, bench.stream()));
  CHECK_OK(bench->unmap(victim, page_bytes));
  CHECK_OK(bench->map(victim, page_bytes, pages[0]));
  CHECK_EQ(bench->stream_synchronize(bench.stream()), Status::illegal_address);
}

// Reservations and mappings: what cuda.h says is refused, is refused.
#include "bench.h"
#include "real_gpu.h"

using namespace gpupool;

namespace {

constexpr Status invalid = Status::invalid_value;

struct Space : Bench {
  Space() {
    CHECK_OK((*this)->address_reserve(&base, 4 * page_bytes));
    for (PageHandle& page : pages) CHECK_OK((*this)->page_create(&page, page_bytes));
  }
  Status map(std::size_t slot, std::size_t page) {
    return (*this)->map(base + slot * page_bytes, page_bytes, pages[page]);
  }
  DevicePtr base = 0;
  PageHandle pages[4] = {};
};

}  // namespace

TEST(a_reservation_has_a_size_in_whole_granules) {
  Bench bench;
  DevicePtr address = 7;
  CHECK_EQ(bench->address_reserve(&address, 0), invalid);
  CHECK_EQ(bench->address_reserve(&address, page_bytes + 4096), invalid);
  CHECK_EQ(address, 7);  // outputs are written only on success
}

TEST(a_reservation_too_large_for_the_address_space_is_refused) {
  Bench bench;
  DevicePtr address = 0;
  CHECK(bench->address_reserve(&address, std::size_t{1} << 60) != Status::success);
  CHECK(bench->address_reserve(&address, ~std::size_t{0} - page_bytes + 1) != Status::success);
}

TEST(reservations_are_aligned_and_do_not_overlap) {
  Bench bench;
  DevicePtr first = 0, second = 0;
  CHECK_OK(bench->address_reserve(&first, 2 * page_bytes));
  CHECK_OK(bench->address_reserve(&second, 2 * page_bytes));
  CHECK_EQ(first % page_bytes, 0);
  CHECK(first + 2 * page_bytes <= second || second + 2 * page_bytes <= first);
  CHECK_OK(bench->address_free(first, 2 * page_bytes));
  CHECK_OK(bench->address_free(second, 2 * page_bytes));
}

TEST(only_a_whole_reservation_without_mappings_is_freed) {
  Space space;
  CHECK_EQ(space->address_free(space.base, page_bytes), invalid);
  CHECK_EQ(space->address_free(space.base + page_bytes, page_bytes), invalid);
  CHECK_EQ(space->address_free(space.base + 100 * page_bytes, page_bytes), invalid);
  const bool on_gpu = left_out_on_a_gpu(
      "a reservation freed with a page mapped in it, or twice: no refusal promised");
  if (!on_gpu) {
    CHECK_OK(space.map(2, 0));
    CHECK_EQ(space->address_free(space.base, 4 * page_bytes), invalid);
    CHECK_OK(space->unmap(space.base + 2 * page_bytes, page_bytes));
  }
  CHECK_OK(space->address_free(space.base, 4 * page_bytes));
  if (!on_gpu) CHECK_EQ(space->address_free(space.base, 4 * page_bytes), invalid);
}

TEST(nothing_is_mapped_where_nothing_is_reserved) {
  Space space;
  CHECK_EQ(space.map(4, 0), invalid);
  CHECK_EQ(space->map(0, page_bytes, space.pages[0]), invalid);
  CHECK_EQ(space->map(~DevicePtr{0} - page_bytes + 1, page_bytes, space.pages[0]), invalid);
  CHECK_OK(space->address_free(space.base, 4 * page_bytes));
  CHECK_EQ(space.map(0, 0), invalid);
}

TEST(a_page_is_mapped_whole_and_aligned) {
  Space space;
  CHECK_EQ(space->map(space.base, page_bytes / 2, space.pages[0]), invalid);
  CHECK_EQ(space->map(space.base, 2 * page_bytes, space.pages[0]), invalid);
  CHECK_EQ(space->map(space.base + 4096, page_bytes, space.pages[0]), invalid);
}

TEST(a_page_is_mapped_in_one_reservation) {
  Space space;
  PageHandle wide = 0;
  CHECK_OK(space->page_create(&wide, 2 * page_bytes));
  CHECK_EQ(space->map(space.base + 3 * page_bytes, 2 * page_bytes, wide), invalid);
  CHECK_OK(space->map(space.base + 2 * page_bytes, 2 * page_bytes, wide));
}

TEST(an_address_holds_one_mapping) {
  Space space;
  CHECK_OK(space.map(1, 0));
  CHECK_EQ(space.map(1, 0), invalid);
  CHECK_EQ(space.map(1, 1), invalid);
  PageHandle wide = 0;
  CHECK_OK(space->page_create(&wide, 2 * page_bytes));
  CHECK_EQ(space->map(space.base, 2 * page_bytes, wide), invalid);  // into its front
  CHECK_OK(space->map(space.base + 2 * page_bytes, 2 * page_bytes, wide));
  CHECK_EQ(space.map(3, 1), invalid);  // behind its front
}

TEST(one_page_may_be_mapped_at_two_addresses) {
  Space space;
  CHECK_OK(space.map(0, 0));
  CHECK_OK(space.map(1, 0));
  CHECK_OK(space->set_access(space.base, 2 * page_bytes));
  space.write(space.base, pattern(1, page_bytes));
  CHECK(space.read(space.base + page_bytes, page_bytes) == pattern(1, page_bytes));
}

TEST(unmap_takes_whole_mappings_only) {
  Space space;
  PageHandle wide = 0;
  CHECK_OK(space->page_create(&wide, 2 * page_bytes));
  CHECK_OK(space->map(space.base, 2 * page_bytes, wide));
  CHECK_OK(space.map(2, 0));
  CHECK_EQ(space->unmap(space.base, page_bytes), invalid);                   // half of it
  CHECK_EQ(space->unmap(space.base + page_bytes, page_bytes), invalid);      // the other half
  CHECK_EQ(space->unmap(space.base + page_bytes, 2 * page_bytes), invalid);  // and a neighbour
  CHECK_EQ(space->unmap(space.base, 4 * page_bytes), invalid);               // a hole at the end
  CHECK_EQ(space->unmap(space.base, 0), invalid);
  CHECK_EQ(space->unmap(space.base + 3 * page_bytes, page_bytes), invalid);  // nothing there
  CHECK_OK(space->unmap(space.base, 3 * page_bytes));                        // two at once
  CHECK_EQ(space->unmap(space.base, 3 * page_bytes), invalid);               // twice
}

// What every swap-out rests on: a run of many mappings goes in one call, with access or without,
// and they can be mapped again.
TEST(one_unmap_takes_many_mappings) {
  Bench bench;
  constexpr std::size_t count = 16;
  std::vector<PageHandle> handles;
  const DevicePtr base = bench.mapped(count, &handles);
  const auto map_all = [&] {
    for (std::size_t i = 0; i < count; ++i) {
      CHECK_OK(bench->map(base + i * page_bytes, page_bytes, handles[i]));
    }
  };
  bench.write(base, pattern(3, count * page_bytes));
  CHECK_OK(bench->unmap(base + 2 * page_bytes, 5 * page_bytes));  // from within the run
  CHECK(bench.read(base, 2 * page_bytes) == pattern(3, 2 * page_bytes));
  CHECK_OK(bench->unmap(base + 7 * page_bytes, (count - 7) * page_bytes));
  CHECK_OK(bench->unmap(base, 2 * page_bytes));
  map_all();
  CHECK_OK(bench->unmap(base, count * page_bytes));  // without access, all of it
  map_all();
  CHECK_OK(bench->set_access(base, count * page_bytes));
  CHECK(bench.read(base, count * page_bytes) == pattern(3, count * page_bytes));
  CHECK_OK(bench->unmap(base, count * page_bytes));
  CHECK_OK(bench->address_free(base, count * page_bytes));
  for (const PageHandle page : handles) CHECK_OK(bench->page_release(page));
}

TEST(access_is_set_over_whole_mappings_without_holes) {
  Space space;
  CHECK_OK(space.map(0, 0));
  CHECK_OK(space.map(2, 1));
  CHECK_EQ(space->set_access(space.base, 3 * page_bytes), invalid);
  CHECK_EQ(space->set_access(space.base, 2 * page_bytes), invalid);
  CHECK_EQ(space->set_access(space.base + page_bytes, page_bytes), invalid);
  CHECK_OK(space.map(1, 2));
  CHECK_OK(space->set_access(space.base, 3 * page_bytes));
  CHECK_EQ(space.read(space.base, 3 * page_bytes).size(), 3 * page_bytes);
}

TEST(access_may_be_set_twice) {
  Space space;
  CHECK_OK(space.map(0, 0));
  CHECK_OK(space->set_access(space.base, page_bytes));
  space.write(space.base, pattern(7, page_bytes));
  CHECK_OK(space.map(1, 1));
  CHECK_OK(space->set_access(space.base, 2 * page_bytes));
  CHECK(space.read(space.base, page_bytes) == pattern(7, page_bytes));
}

// What is shared is mapped so. What else is mapped of the page stays writable.
TEST(what_is_read_only_can_be_read_until_access_is_set_again) {
  Space space;
  for (std::size_t i = 0; i < 3; ++i) CHECK_OK(space.map(i, i));
  CHECK_OK(space->set_access(space.base, 3 * page_bytes));
  for (std::size_t i = 0; i < 3; ++i) space.write(space.base + i * page_bytes, pattern(i, 4096));
  const DevicePtr middle = space.base + page_bytes;
  CHECK_OK(space->set_read_only(middle, page_bytes));
  CHECK(space.read(middle, 4096) == pattern(1, 4096));
  CHECK_EQ(space.read(space.base, 3 * page_bytes).size(), 3 * page_bytes);

  const DevicePtr other = space.base + 3 * page_bytes;
  CHECK_OK(space.map(3, 1));
  CHECK_OK(space->set_access(other, page_bytes));
  space.write(other, pattern(9, 4096));
  CHECK(space.read(middle, 4096) == pattern(9, 4096));
  CHECK_OK(space->set_access(middle, page_bytes));
  space.write(middle, pattern(5, 4096));
  CHECK(space.read(middle, 4096) == pattern(5, 4096));
}

TEST(what_is_made_read_only_must_be_mapped_throughout) {
  Space space;
  CHECK_OK(space.map(0, 0));
  CHECK_OK(space.map(2, 1));
  CHECK_EQ(space->set_read_only(space.base, 3 * page_bytes), invalid);
  CHECK_EQ(space->set_read_only(space.base + page_bytes, page_bytes), invalid);
  CHECK_OK(space->set_read_only(space.base + 2 * page_bytes, page_bytes));  // the first access
  CHECK_EQ(space.read(space.base + 2 * page_bytes, 4096).size(), std::size_t{4096});
}

TEST(a_page_mapped_again_keeps_its_bytes) {
  Space space;
  CHECK_OK(space.map(0, 0));
  CHECK_OK(space->set_access(space.base, page_bytes));
  space.write(space.base, pattern(2, page_bytes));
  CHECK_OK(space->unmap(space.base, page_bytes));
  CHECK_OK(space.map(3, 0));
  CHECK_OK(space->set_access(space.base + 3 * page_bytes, page_bytes));
  CHECK(space.read(space.base + 3 * page_bytes, page_bytes) == pattern(2, page_bytes));
}

TEST(pages_follow_the_order_in_which_they_are_mapped) {
  Space space;
  for (std::size_t i = 0; i < 4; ++i) CHECK_OK(space.map(i, 3 - i));
  CHECK_OK(space->set_access(space.base, 4 * page_bytes));
  for (std::size_t i = 0; i < 4; ++i) space.write(space.base + i * page_bytes, pattern(i, 4096));
  CHECK_OK(space->unmap(space.base, 4 * page_bytes));
  for (std::size_t i = 0; i < 4; ++i) CHECK_OK(space.map(i, i));
  CHECK_OK(space->set_access(space.base, 4 * page_bytes));
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(space.read(space.base + i * page_bytes, 4096) == pattern(3 - i, 4096));
  }
}

TEST(neighbours_stay_when_one_mapping_goes) {
  Space space;
  for (std::size_t i = 0; i < 3; ++i) CHECK_OK(space.map(i, i));
  CHECK_OK(space->set_access(space.base, 3 * page_bytes));
  for (std::size_t i = 0; i < 3; ++i) space.write(space.base + i * page_bytes, pattern(i, 4096));
  CHECK_OK(space->unmap(space.base + page_bytes, page_bytes));
  CHECK(space.read(space.base, 4096) == pattern(0, 4096));
  CHECK(space.read(space.base + 2 * page_bytes, 4096) == pattern(2, 4096));
}

TEST(a_page_may_be_several_granules) {
  Space space;
  PageHandle wide = 0;
  CHECK_OK(space->page_create(&wide, 2 * page_bytes));
  CHECK_OK(space->map(space.base + page_bytes, 2 * page_bytes, wide));
  CHECK_OK(space->set_access(space.base + page_bytes, 2 * page_bytes));
  space.write(space.base + page_bytes, pattern(8, 2 * page_bytes));
  CHECK(space.read(space.base + page_bytes, 2 * page_bytes) == pattern(8, 2 * page_bytes));
}

TEST(addresses_given_back_can_be_reserved_again) {
  Bench bench;
  for (int i = 0; i < 100; ++i) {
    DevicePtr address = 0;
    CHECK_OK(bench->address_reserve(&address, 64 * page_bytes));
    CHECK(address != 0);
    CHECK_OK(bench->address_free(address, 64 * page_bytes));
  }
}

TEST(a_large_reservation_takes_no_memory) {
  Bench bench;
  DevicePtr address = 0;
  CHECK_OK(bench->address_reserve(&address, std::size_t{1} << 38));
  CHECK_OK(bench->address_free(address, std::size_t{1} << 38));
}

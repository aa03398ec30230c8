// Copies in batches. A driver that has no such call says so and does nothing.
#include "batch_bench.h"

using namespace gpupool;

namespace {

// Scattered pieces of odd sizes, one behind the other in the staging memory but for a byte between
// them; on the device their order is another.
struct Scattered : Bench {
  static constexpr std::size_t count = 300;
  Scattered() : base(mapped(3)) {
    std::size_t behind = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t bytes = 1 + i * 7 % 5000, place = i * 77 % count;
      batch.add(base + place * 20'000 + i % 16, staging() + behind, bytes);
      behind += bytes + 1;
    }
    whole = behind;
    CHECK_OK((*this)->fill(base, 0, 3 * page_bytes, stream()));
  }
  // Whether the driver has batches; where it has none, neither direction does anything.
  bool supported() {
    stage(Bytes(whole, 9));
    const Status out = batch.to_host(*driver(), stream());
    if (out == Status::success) {
      CHECK_OK((*this)->stream_synchronize(stream()));
      return true;
    }
    CHECK_EQ(out, Status::not_supported);
    CHECK_EQ(batch.to_device(*driver(), stream()), Status::not_supported);
    CHECK_OK((*this)->stream_synchronize(stream()));
    CHECK(all_are(staged(), 9));
    CHECK(all_are(read(base, 3 * page_bytes), 0));
    return false;
  }
  Bytes staged() const {
    const auto* first = reinterpret_cast<const std::uint8_t*>(staging());
    return Bytes(first, first + whole);
  }
  void stage(const Bytes& content) {
    std::copy(content.begin(), content.end(), reinterpret_cast<std::uint8_t*>(staging()));
  }
  std::size_t staged_at(std::size_t i) const {
    return static_cast<std::size_t>(static_cast<std::byte*>(batch.host[i]) - staging());
  }
  DevicePtr base;
  BatchOf batch;
  std::size_t whole = 0;
};

}  // namespace

TEST(a_batch_to_the_device_moves_exactly_its_bytes) {
  Scattered all;
  if (!all.supported()) return;
  const Bytes content = pattern(8, all.whole);
  all.stage(content);
  CHECK_OK(all.batch.to_device(*all.driver(), all.stream()));
  CHECK_OK(all->stream_synchronize(all.stream()));
  CHECK(all.staged() == content);
  Bytes expected(3 * page_bytes, 0);
  for (std::size_t i = 0; i < all.count; ++i) {
    std::copy_n(content.begin() + static_cast<std::ptrdiff_t>(all.staged_at(i)), all.batch.sizes[i],
                expected.begin() + static_cast<std::ptrdiff_t>(all.batch.device[i] - all.base));
  }
  CHECK(all.read(all.base, 3 * page_bytes) == expected);
}

TEST(a_batch_to_the_host_moves_exactly_its_bytes) {
  Scattered all;
  if (!all.supported()) return;
  const Bytes content = pattern(9, 3 * page_bytes);
  all.write(all.base, content);
  all.stage(Bytes(all.whole, 0));
  CHECK_OK(all.batch.to_host(*all.driver(), all.stream()));
  CHECK_OK(all->stream_synchronize(all.stream()));
  Bytes expected(all.whole, 0);
  for (std::size_t i = 0; i < all.count; ++i) {
    std::copy_n(content.begin() + static_cast<std::ptrdiff_t>(all.batch.device[i] - all.base),
                all.batch.sizes[i],
                expected.begin() + static_cast<std::ptrdiff_t>(all.staged_at(i)));
  }
  CHECK(all.staged() == expected);
  CHECK(all.read(all.base, 3 * page_bytes) == content);
}

TEST(a_batch_may_be_one_copy) {
  Scattered all;
  if (!all.supported()) return;
  all.stage({1, 2, 3});
  BatchOf one;
  one.add(all.base + 77, all.staging() + 1, 1);
  CHECK_OK(one.to_device(*all.driver(), all.stream()));
  CHECK(all.read(all.base + 76, 3) == Bytes({0, 2, 0}));
}

TEST(a_batch_may_be_many_copies) {
  Scattered all;
  if (!all.supported()) return;
  constexpr std::size_t count = 4000, bytes = 512;
  const Bytes content = pattern(10, count * bytes);
  all.stage(content);
  BatchOf many;
  for (std::size_t i = 0; i < count; ++i) {
    many.add(all.base + i * bytes, all.staging() + i * bytes, bytes);
  }
  CHECK_OK(many.to_device(*all.driver(), all.stream()));
  CHECK(all.read(all.base, count * bytes) == content);
}

TEST(a_batch_runs_in_the_order_of_its_stream) {
  Scattered all;
  if (!all.supported()) return;
  // What a batch brings out is what was filled before it, and what one brings in is what an
  // earlier one brought out, of memory that the next round writes again.
  BatchOf out, in;
  for (std::size_t i = 0; i < 8; ++i) {
    out.add(all.base + i * 4096, all.staging() + i * 4096, 4096);
    in.add(all.base + page_bytes + i * 4096, all.staging() + i * 4096, 4096);
  }
  std::byte* const seen = all.staging() + mib;
  for (std::size_t round = 0; round < 20; ++round) {
    CHECK_OK(all->fill(all.base, static_cast<std::uint8_t>(round), 8 * 4096, all.stream()));
    CHECK_OK(out.to_host(*all.driver(), all.stream()));
    CHECK_OK(all->fill(all.base, 0xEE, 8 * 4096, all.stream()));
    CHECK_OK(in.to_device(*all.driver(), all.stream()));
    CHECK_OK(
        all->copy_to_host(seen + round * 8 * 4096, all.base + page_bytes, 8 * 4096, all.stream()));
  }
  CHECK_OK(all->stream_synchronize(all.stream()));
  for (std::size_t i = 0; i < 20 * 8 * 4096; ++i) CHECK_EQ(seen[i], std::byte(i / (8 * 4096)));
}

TEST(the_arrays_of_a_batch_are_the_callers_again) {
  Scattered all;
  if (!all.supported()) return;
  const Bytes content = pattern(11, all.whole);
  all.stage(content);
  BatchOf batch = all.batch;
  CHECK_OK(batch.to_device(*all.driver(), all.stream()));
  std::fill(batch.device.begin(), batch.device.end(), DevicePtr{0});
  std::fill(batch.host.begin(), batch.host.end(), nullptr);
  std::fill(batch.sizes.begin(), batch.sizes.end(), std::size_t{0});
  CHECK_OK(all->stream_synchronize(all.stream()));
  for (std::size_t i = 0; i < all.count; i += 13) {
    const Bytes piece = all.read(all.batch.device[i], all.batch.sizes[i]);
    all.stage(content);  // read() went over it
    CHECK(std::equal(piece.begin(), piece.end(),
                     content.begin() + static_cast<std::ptrdiff_t>(all.staged_at(i))));
  }
}

TEST(an_event_behind_a_batch_comes_after_all_of_it) {
  Scattered all;
  if (!all.supported()) return;
  EventHandle event = nullptr;
  CHECK_OK(all->event_create(&event));
  CHECK_OK(all->fill(all.base, 6, 3 * page_bytes, all.stream()));
  all.stage(Bytes(all.whole, 0));
  CHECK_OK(all.batch.to_host(*all.driver(), all.stream()));
  CHECK_OK(all->event_record(event, all.stream()));
  CHECK_OK(all->event_synchronize(event));
  const Bytes seen = all.staged();
  for (std::size_t i = 0; i < all.count; ++i) {
    CHECK_EQ(seen[all.staged_at(i)], 6);
    CHECK_EQ(seen[all.staged_at(i) + all.batch.sizes[i] - 1], 6);
    CHECK_EQ(seen[all.staged_at(i) + all.batch.sizes[i]], 0);
  }
  CHECK_OK(all->event_destroy(event));
}

TEST(a_batch_is_not_for_the_legacy_default_stream) {
  Scattered all;
  if (!all.supported()) return;
  CHECK(all.batch.to_host(*all.driver(), nullptr) != Status::success);
  CHECK(all.batch.to_device(*all.driver(), nullptr) != Status::success);
  CHECK_OK(all->stream_synchronize(all.stream()));
  CHECK_OK(all.batch.to_host(*all.driver(), all.stream()));
  CHECK_OK(all->stream_synchronize(all.stream()));
}

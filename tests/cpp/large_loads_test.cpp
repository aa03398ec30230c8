// Models of many pieces, several of which are one copy: chunks of the size that is the default.
#include "hooked.h"
#include "model_bench.h"

using namespace gpupool;

namespace {

constexpr std::size_t chunk_bytes = 32 * mib;

struct Large {
  explicit Large(std::size_t bytes, Verify verify = Verify::always, std::size_t capacity_bytes = 0)
      : hooked(std::make_shared<Hooked>(machine.faulty)),
        pool(hooked, 48 * page_bytes, page_bytes),
        memory(hooked, page_bytes, chunk_bytes, 2, verify),
        weights(memory.add_region(Tag::weights, bytes, -1, capacity_bytes)),
        content(pattern(1, bytes)) {
    std::copy(content.begin(), content.end(), image());
    memory.adopt_image(*weights);
    hooked->before = [&](DriverCall call) {
      copies += call == DriverCall::copy_to_device || call == DriverCall::copy_to_device_digest;
    };
  }
  std::uint8_t* image() const { return reinterpret_cast<std::uint8_t*>(weights->image()); }
  SwapReport swap_in() {
    std::vector<PagePtr> pages;
    pool.give_back_all(1);
    for (const PageId id : pool.acquire(1, memory.pages_needed())) pages.push_back(pool.page(id));
    copies = 0;
    return memory.swap_in(pages);
  }
  // In and out once more, and it is what it should be.
  void check() {
    CHECK_EQ(swap_in().copied_bytes, content.size());
    for (std::size_t at = 0; at < content.size(); at += 16 * mib) {
      const std::size_t n = std::min(16 * mib, content.size() - at);
      const Bytes seen = machine.bench.read(weights->address() + at, n);
      CHECK(std::equal(seen.begin(), seen.end(), content.begin() + static_cast<long>(at)));
    }
    memory.swap_out();
  }

  Machine machine{1};
  std::shared_ptr<Hooked> hooked;
  PagePool pool;
  ModelMemory memory;
  RegionPtr weights;
  Bytes content;
  int copies = 0;
};

}  // namespace

TEST(pieces_are_copied_together) {
  for (const std::size_t bytes : {64 * mib, 64 * mib + 24, 61 * mib - 8}) {
    Large large(bytes);
    large.check();
    // Four for each of two streams, of 6 or 8 MiB, and what is left.
    CHECK(large.copies >= 8 && large.copies <= 11);
  }
}

TEST(damage_is_found_in_every_piece_of_a_copy) {
  Large large(64 * mib + 24);
  for (const std::size_t at : {std::size_t{0}, 2 * mib, 5 * mib, 31 * mib, 63 * mib, 64 * mib}) {
    large.image()[at] ^= 1;
    CHECK_THROWS(DamagedImage, large.swap_in());
    large.image()[at] ^= 1;
  }
  large.check();
  // Once at the first copy and not at the second: one piece is copied again, and no other.
  large.image()[21 * mib] ^= 1;
  large.hooked->before = [&, waits = 0](DriverCall call) mutable {
    waits += call == DriverCall::stream_synchronize;
    if (call == DriverCall::copy_to_device_digest && waits == 2) {
      large.image()[21 * mib] ^= 1;
      waits = 3;
    }
  };
  CHECK_EQ(large.swap_in().recopied_bytes, 2 * mib);
  large.hooked->before = [](DriverCall) {};
  large.memory.swap_out();
  large.check();
}

// The digests of a copy are of 2 MiB each from where it begins, which are then no pieces.
TEST(what_was_saved_in_runs_is_verified_piece_by_piece) {
  Large large(2 * mib);
  const RegionPtr cache = large.memory.add_region(Tag::kv_cache, 64 * mib, -1);
  large.swap_in();
  const Bytes content = pattern(7, 16 * mib);
  for (const std::size_t at : {mib, 25 * mib, 42 * mib + 8}) {
    large.machine.bench.write(cache->address() + at, content);
    large.memory.mark_written(*cache, {{at, at + content.size()}});
  }
  CHECK_EQ(large.memory.swap_out().copied_bytes, 3 * content.size());
  const SwapReport report = large.swap_in();
  CHECK_EQ(report.verified_bytes, 2 * mib + 3 * content.size());
  CHECK_EQ(report.recopied_bytes, 0);
  for (const std::size_t at : {mib, 25 * mib, 42 * mib + 8}) {
    CHECK(large.machine.bench.read(cache->address() + at, content.size()) == content);
  }
}

// A copy is within one registration of the image, and each growth is one of its own.
TEST(a_model_that_has_grown_comes_in) {
  for (const Verify verify : {Verify::always, Verify::off}) {
    Large large(2 * mib, verify, 96 * mib);
    for (const std::size_t bytes : {40 * mib, 66 * mib, 67 * mib + 8}) {
      large.memory.resize(*large.weights, bytes, {}, 0, -1);
      large.content = pattern(bytes, bytes);
      std::copy(large.content.begin(), large.content.end(), large.image());
      large.memory.adopt_image(*large.weights);
      large.check();
    }
  }
}

TEST(there_is_room_for_the_sums_of_a_model_that_has_grown) {
  Machine machine(1);
  PagePool pool(machine.faulty, 16 * page_bytes, page_bytes);
  // Pieces of 4 KiB: more sums than a page of the system has.
  ModelMemory memory(machine.faulty, page_bytes, 4096);
  for (std::size_t i = 0; i < 3; ++i) {
    const RegionPtr region = memory.add_region(Tag::weights, 4 * mib, -1);
    const Bytes content = pattern(i, 4 * mib);
    std::copy(content.begin(), content.end(), reinterpret_cast<std::uint8_t*>(region->image()));
    memory.adopt_image(*region);
    std::vector<PagePtr> pages;
    for (const PageId id : pool.acquire(1, memory.pages_needed())) pages.push_back(pool.page(id));
    CHECK_EQ(memory.swap_in(pages).verified_bytes, (i + 1) * 4 * mib);
    CHECK(machine.bench.read(region->address(), 4 * mib) == content);
    memory.swap_out();
    pool.give_back_all(1);
  }
}

// No model comes in with bytes that are not what was saved, and what did not change is not saved
// again.
#include "digest/digest.h"
#include "hooked.h"
#include "model_bench.h"

using namespace gpupool;

namespace {

// A model with a region of weights of several pieces, saved and out.
struct Scene {
  explicit Scene(Verify verify = Verify::always, std::size_t bytes = 5 * mib + 24,
                 std::size_t chunk_bytes = 4 * mib)
      : hooked(std::make_shared<Hooked>(machine.faulty)),
        pool(hooked, 8 * page_bytes, page_bytes),
        memory(hooked, page_bytes, chunk_bytes, 2, verify),
        weights(memory.add_region(Tag::weights, bytes, -1)),
        content(pattern(1, bytes)) {
    take_pages();
    std::copy(content.begin(), content.end(), image());
    memory.adopt_image(*weights);
  }
  void take_pages() {
    pool.give_back_all(1);
    pages.clear();
    for (const PageId id : pool.acquire(1, memory.pages_needed())) pages.push_back(pool.page(id));
  }
  std::uint8_t* image() const { return reinterpret_cast<std::uint8_t*>(weights->image()); }
  void flip(std::size_t bit) const { image()[bit / 8] ^= 1U << bit % 8; }
  Bytes on_device() { return machine.bench.read(weights->address(), weights->bytes()); }
  void write(std::size_t at, const Bytes& bytes) {
    machine.bench.write(weights->address() + at, bytes);
    std::copy(bytes.begin(), bytes.end(), content.begin() + static_cast<std::ptrdiff_t>(at));
  }
  // In and out once more, and it is what it should be.
  void check() {
    memory.swap_in(pages);
    CHECK(on_device() == content);
    memory.swap_out();
  }

  Machine machine{1};
  std::shared_ptr<Hooked> hooked;
  PagePool pool;
  std::vector<PagePtr> pages;
  ModelMemory memory;
  RegionPtr weights;
  Bytes content;
};

}  // namespace

TEST(what_comes_in_is_verified) {
  Scene scene;
  const SwapReport report = scene.memory.swap_in(scene.pages);
  CHECK_EQ(report.copied_bytes, scene.weights->bytes());
  CHECK_EQ(report.verified_bytes, scene.weights->bytes());
  CHECK_EQ(report.recopied_bytes, 0);
  CHECK(report.moving_ns > 0);
  CHECK(scene.on_device() == scene.content);
}

// Of an image that is adopted with them; where pieces are smaller they are made anew.
TEST(digests_that_were_made_before_are_not_made_again) {
  for (const std::size_t chunk_bytes : {4 * mib, mib}) {
    Scene scene(Verify::always, 5 * mib + 24, chunk_bytes);
    std::vector<std::uint64_t> digests;
    for (std::size_t at = 0; at < scene.content.size(); at += digest_piece_bytes) {
      digests.push_back(
          digest(&scene.content[at], std::min(digest_piece_bytes, scene.content.size() - at)));
    }
    scene.memory.adopt_image(*scene.weights, digests);
    scene.check();
    // What they are of has changed by now.
    scene.flip(8 * 3 * mib);
    scene.memory.adopt_image(*scene.weights, digests);
    if (chunk_bytes < digest_piece_bytes) {
      scene.memory.swap_in(scene.pages);
      scene.memory.swap_out();
    } else {
      CHECK_THROWS(DamagedImage, scene.memory.swap_in(scene.pages));
    }
    scene.flip(8 * 3 * mib);
    scene.memory.adopt_image(*scene.weights, digests);
    digests.pop_back();
    CHECK_THROWS(UsageError, scene.memory.adopt_image(*scene.weights, digests));
    scene.check();
  }
}

TEST(a_flipped_bit_keeps_a_model_out_until_it_is_put_right) {
  Scene scene;
  const std::size_t bits = 8 * scene.weights->bytes();
  for (const std::size_t bit : {std::size_t{0}, 8 * 2 * mib - 1, 8 * 2 * mib, bits / 2, bits - 1}) {
    scene.flip(bit);
    for (int attempt = 0; attempt < 2; ++attempt) {
      CHECK_THROWS(DamagedImage, scene.memory.swap_in(scene.pages));
      CHECK(!scene.memory.resident() && !scene.memory.torn());
    }
    scene.flip(bit);
    scene.check();
  }
}

// As it was before the first copy and is no more at the second: a transfer that went wrong.
TEST(what_arrived_wrong_is_copied_again) {
  Scene scene;
  scene.flip(8 * 3 * mib);
  scene.hooked->before = [&, waits = 0](DriverCall call) mutable {
    // The third wait of a stream is the first of the second attempt.
    if (call == DriverCall::copy_to_device_digest && waits >= 2) {
      if (waits == 2) scene.flip(8 * 3 * mib);
      waits = 3;
    }
    waits += call == DriverCall::stream_synchronize && waits < 2;
  };
  const SwapReport report = scene.memory.swap_in(scene.pages);
  scene.hooked->before = [](DriverCall) {};
  CHECK_EQ(report.recopied_bytes, 2 * mib);
  CHECK(scene.on_device() == scene.content);
}

TEST(pages_written_with_what_they_had_are_not_saved_again) {
  Scene scene;
  scene.memory.swap_in(scene.pages);
  scene.memory.mark_written(*scene.weights, {{0, scene.weights->bytes()}});
  const SwapReport same = scene.memory.swap_out();
  CHECK_EQ(same.copied_bytes, 0);
  CHECK_EQ(same.moving_ns, 0);
  scene.check();
  // Of one that changed, what is marked.
  scene.memory.swap_in(scene.pages);
  scene.write(2 * mib + 100, {1, 2, 3});
  scene.memory.mark_written(*scene.weights, {{mib, 3 * mib}});
  const SwapReport changed = scene.memory.swap_out();
  CHECK_EQ(changed.copied_bytes, mib);
  CHECK(changed.moving_ns > 0);
  scene.check();
}

TEST(a_save_that_fails_leaves_nothing_that_is_taken_for_saved) {
  for (std::uint64_t nth = 1, injected = 1; injected > 0; ++nth) {
    Scene scene;
    const Bytes before(scene.content.begin(), scene.content.begin() + 1000);
    scene.memory.swap_in(scene.pages);
    scene.write(0, Bytes(1000, 7));
    scene.memory.mark_written(*scene.weights, {{0, 1000}});
    scene.machine.plan->arm(nth, Status::unknown, false);
    bool out = true;
    try {
      scene.memory.swap_out();
    } catch (const DriverError&) {
      out = false;
    }
    injected = scene.machine.plan->injected();
    scene.machine.plan->disarm();
    if (out || scene.memory.torn()) {
      if (!out) scene.memory.swap_out();
    } else {
      // What it was before comes back on the device; the image may have the other.
      scene.write(0, before);
      scene.memory.mark_written(*scene.weights, {{0, 1000}});
      scene.memory.swap_out();
    }
    scene.check();
  }
}

TEST(a_region_that_changes_its_size_is_verified_still) {
  Scene scene;
  for (const std::size_t bytes : {5 * mib - 1000, 3 * mib + 8, 6 * mib, 100 * std::size_t{1}}) {
    const std::size_t before = scene.weights->bytes();
    scene.memory.resize(*scene.weights, bytes, {}, 0, -1);
    scene.content.resize(bytes, 0);
    const std::size_t kept = std::min(before, bytes);
    scene.take_pages();
    scene.check();
    scene.flip(8 * kept - 1);
    CHECK_THROWS(DamagedImage, scene.memory.swap_in(scene.pages));
    scene.flip(8 * kept - 1);
    scene.check();
  }
}

TEST(what_a_resize_cuts_is_not_taken_for_good) {
  Scene scene;
  for (const std::size_t bytes : {5 * mib, 4 * mib + 2 * mib / 3}) {
    scene.flip(8 * (4 * mib + 17));
    CHECK_THROWS(DamagedImage, scene.memory.resize(*scene.weights, bytes, {}, 0, -1));
    CHECK_EQ(scene.weights->bytes(), scene.content.size());
    CHECK_THROWS(DamagedImage, scene.memory.swap_in(scene.pages));
    scene.flip(8 * (4 * mib + 17));
    scene.memory.resize(*scene.weights, bytes, {}, 0, -1);
    scene.content.resize(bytes);
    scene.check();
    // Of a resident one the device has what is good: it is saved again.
    scene.memory.swap_in(scene.pages);
    scene.flip(8 * (4 * mib + 17));
    scene.memory.resize(*scene.weights, bytes - 100, {}, 0, -1);
    scene.content.resize(bytes - 100);
    scene.memory.swap_out();
    scene.check();
  }
}

// The failed save has forgotten the digest of a piece, and the resize what there was to save of it.
TEST(a_piece_that_a_save_began_with_is_saved_when_it_is_cut) {
  Scene scene;
  scene.memory.swap_in(scene.pages);
  scene.write(5 * mib, Bytes(24, 7));
  scene.memory.mark_written(*scene.weights, {{5 * mib, 5 * mib + 24}});
  scene.machine.plan->arm_call(DriverCall::copy_to_host, 1, 1, Status::unknown);
  CHECK_THROWS(DriverError, scene.memory.swap_out());
  scene.machine.plan->disarm();
  CHECK(scene.memory.resident());
  scene.memory.resize(*scene.weights, 5 * mib, {}, 0, -1);
  scene.content.resize(5 * mib);
  scene.memory.swap_out();
  scene.check();
}

TEST(a_sample_finds_damage_within_sixteen_turns) {
  Scene scene(Verify::sample, 7 * mib, mib / 4);
  std::size_t verified = 0;
  for (int turn = 0; turn < 16; ++turn) {
    const SwapReport report = scene.memory.swap_in(scene.pages);
    CHECK(report.verified_bytes < report.copied_bytes / 8);
    verified += report.verified_bytes;
    scene.memory.swap_out();
  }
  CHECK_EQ(verified, scene.weights->bytes());
  for (const std::size_t at : {std::size_t{0}, 3 * mib, 7 * mib - 1}) {
    scene.flip(8 * at);
    int refused = 0;
    for (int turn = 0; turn < 16; ++turn) {
      try {
        scene.memory.swap_in(scene.pages);
        scene.memory.swap_out();
      } catch (const DamagedImage&) {
        ++refused;
      }
    }
    CHECK_EQ(refused, 1);
    scene.flip(8 * at);
  }
}

TEST(nothing_is_digested_where_that_is_switched_off) {
  Scene scene(Verify::off);
  int digests = 0;
  scene.hooked->before = [&](DriverCall call) {
    digests += call == DriverCall::digest || call == DriverCall::copy_to_device_digest;
  };
  CHECK_EQ(scene.memory.swap_in(scene.pages).verified_bytes, 0);
  CHECK(scene.on_device() == scene.content);
  CHECK_EQ(scene.memory.swap_out().copied_bytes, 0);
  scene.memory.swap_in(scene.pages);
  scene.write(1, {5});
  scene.memory.mark_written(*scene.weights, {{0, 2 * mib}});
  const SwapReport saved = scene.memory.swap_out();
  CHECK_EQ(saved.copied_bytes, 2 * mib);
  CHECK(saved.moving_ns > 0);
  scene.check();
  scene.memory.swap_in(scene.pages);
  const SwapReport clean = scene.memory.swap_out();
  CHECK_EQ(clean.copied_bytes, 0);
  CHECK_EQ(clean.moving_ns, 0);
  CHECK_EQ(digests, 0);
}

TEST(a_closed_model_keeps_no_memory_for_sums) {
  Scene scene;
  scene.check();
  int unregistered = 0;
  scene.hooked->before = [&](DriverCall call) {
    unregistered += call == DriverCall::host_unregister;
  };
  scene.memory.close();
  CHECK_EQ(unregistered, 2);  // that of the sums, and the image
}

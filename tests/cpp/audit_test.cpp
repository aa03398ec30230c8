// A swap-out looks at some of what nobody said was written: what is another there is reported, not
// saved, and gone when the model is back.
#include <random>

#include "hooked.h"
#include "model_bench.h"

using namespace gpupool;

namespace {

constexpr std::size_t piece = mib / 16, most = 16;

// Weights of 81 pieces, saved and out; a page of a piece more is free.
struct Scene {
  explicit Scene(Verify verify = Verify::always, std::size_t bytes = 80 * piece + 24,
                 std::size_t chunk_bytes = piece)
      : hooked(std::make_shared<Hooked>(machine.faulty)),
        pool(hooked, 24 * page_bytes, page_bytes),
        memory(hooked, page_bytes, chunk_bytes, 2, verify) {
    weights = add(Tag::weights, bytes);
  }
  RegionPtr add(Tag tag, std::size_t bytes) {
    const RegionPtr region = memory.add_region(tag, bytes, -1);
    content.push_back(pattern(regions.size(), bytes));
    std::memcpy(region->image(), content.back().data(), bytes);
    memory.adopt_image(*region);
    regions.push_back(region);
    return region;
  }
  SwapReport in() {
    std::vector<PageId> mine;
    std::vector<PagePtr> pages, warm;
    for (const RegionPtr& region : regions) {
      for (const PagePtr& page : memory.mapped_pages(*region)) warm.push_back(page);
    }
    for (const PageId id : pool.owned(1)) {
      if (std::count(warm.begin(), warm.end(), pool.page(id)) == 0) mine.push_back(id);
    }
    pool.give_back(1, mine);
    for (const PageId id : pool.acquire(1, memory.pages_needed() - warm.size())) {
      pages.push_back(pool.page(id));
    }
    return memory.swap_in(pages);
  }
  // One more bit of each piece of [begin, end) is another, and nobody says so.
  void stray(Run run) {
    for (std::size_t at = run.begin; at < run.end; at += piece) {
      Bytes byte = machine.bench.read(weights->address() + at, 1);
      byte[0] ^= 1;
      machine.bench.write(weights->address() + at, byte);
    }
  }
  void check_content() {
    for (std::size_t i = 0; i < regions.size(); ++i) {
      CHECK(machine.bench.read(regions[i]->address(), regions[i]->bytes()) == content[i]);
    }
  }

  Machine machine{1};
  std::shared_ptr<Hooked> hooked;
  PagePool pool;
  ModelMemory memory;
  RegionPtr weights;
  std::vector<RegionPtr> regions;
  std::vector<Bytes> content;
};

std::size_t piece_at(std::size_t at, std::size_t bytes) {
  return std::min(bytes, (at / piece + 1) * piece) - at / piece * piece;
}

}  // namespace

TEST(each_piece_has_its_turn) {
  Scene scene;
  const std::size_t bytes = scene.weights->bytes(), turns = (bytes / piece) / most + 1;
  std::mt19937_64 random(1);
  std::vector<std::size_t> places{0, piece - 1, bytes - 1};
  while (places.size() < 12) places.push_back(random() % bytes);
  for (const std::size_t at : places) {
    std::size_t found = 0, audited = 0;
    for (std::size_t turn = 0; turn < turns; ++turn) {
      scene.in();
      scene.check_content();
      scene.stray({at, at + 1});
      const SwapReport report = scene.memory.swap_out();
      CHECK_EQ(report.copied_bytes, 0);
      CHECK(report.audited_bytes <= most * piece);
      CHECK(report.unmarked_bytes == 0 || report.unmarked_bytes == piece_at(at, bytes));
      found += report.unmarked_bytes > 0;
      audited += report.audited_bytes;
    }
    CHECK(found == 1 || found == 2);  // once around, and some of it again
    CHECK(audited >= bytes && audited < bytes + most * piece);
  }
}

// Whatever is written and marked, nothing is called unmarked, nor looked at for the audit.
TEST(what_is_marked_is_not_audited) {
  for (const Verify verify : {Verify::always, Verify::sample}) {
    Scene scene(verify);
    scene.add(Tag::kv_cache, 30 * piece);
    scene.add(Tag::runtime, 3 * piece);
    std::mt19937_64 random(static_cast<unsigned>(verify));
    for (int i = 0; i < 40; ++i) {
      scene.in();
      scene.check_content();
      std::size_t marked = 0;
      for (std::size_t r = 0; r < 3; ++r) {
        const std::size_t bytes = scene.regions[r]->bytes();
        Run run{random() % bytes, 0};
        run.end = std::min(bytes, run.begin + 1 + random() % (20 * piece));
        const Bytes now = pattern(random(), run.bytes());
        scene.machine.bench.write(scene.regions[r]->address() + run.begin, now);
        std::copy(now.begin(), now.end(),
                  scene.content[r].begin() + static_cast<std::ptrdiff_t>(run.begin));
        if (r == 2) continue;  // which is saved every time
        scene.memory.mark_written(*scene.regions[r], {run});
        marked += run.bytes();
      }
      const std::size_t keep = random() % 4;
      const SwapReport report = scene.memory.swap_out(keep);
      CHECK_EQ(report.unmarked_bytes, 0);
      CHECK(report.audited_bytes > 0);
      CHECK(report.audited_bytes <= (verify == Verify::sample ? 1 : most) * piece);
      CHECK(report.audited_bytes + marked <= 110 * piece + 24);
    }
  }
}

TEST(a_model_of_few_pieces_is_audited_once_each_time) {
  Scene scene(Verify::always, 5 * piece);
  scene.add(Tag::kv_cache, 4 * piece);
  for (int i = 0; i < 4; ++i) {
    scene.in();
    if (i == 2) scene.memory.mark_written(*scene.weights, {{piece, piece + 1}});
    CHECK_EQ(scene.memory.swap_out().audited_bytes, (i == 2 ? 8 : 9) * piece);
  }
}

TEST(the_audit_goes_on_when_a_region_has_gone) {
  Scene scene;
  const RegionPtr last = scene.add(Tag::kv_cache, 10 * piece);
  for (int i = 0; i < 5; ++i) {  // the sixth begins in the last region
    scene.in();
    scene.memory.swap_out();
  }
  scene.in();
  scene.memory.swap_out();
  scene.memory.remove_region(*last);
  scene.regions.pop_back();
  scene.content.pop_back();
  scene.in();
  CHECK_EQ(scene.memory.swap_out().audited_bytes, most * piece);
  scene.memory.remove_region(*scene.weights);
  scene.regions.clear();
  scene.content.clear();
  scene.in();
  CHECK_EQ(scene.memory.swap_out().audited_bytes, 0);
}

// Of pages that stayed a sample is verified, but for when it is known that some are wrong.
TEST(what_stayed_is_not_trusted_once_something_was_found) {
  Scene scene(Verify::sample);
  const std::size_t bytes = scene.weights->bytes();
  scene.in();
  scene.stray({0, bytes});
  const SwapReport out = scene.memory.swap_out(3);
  CHECK_EQ(out.audited_bytes, piece);
  CHECK_EQ(out.unmarked_bytes, piece);
  const SwapReport in = scene.in();
  CHECK_EQ(in.copied_bytes, 0);
  CHECK_EQ(in.recopied_bytes, bytes);
  scene.check_content();
  CHECK_EQ(scene.memory.swap_out(3).unmarked_bytes, 0);
  CHECK(scene.in().verified_bytes < bytes / 8);
  scene.check_content();
}

TEST(what_a_failed_swap_out_found_the_next_one_reports) {
  for (std::uint64_t nth = 1, injected = 1; injected > 0; ++nth) {
    Scene scene;
    scene.in();
    scene.stray({0, 1});
    scene.machine.plan->arm(nth, Status::unknown, false);
    std::size_t found = 0;
    try {
      found = scene.memory.swap_out().unmarked_bytes;
    } catch (const DriverError&) {
    }
    injected = scene.machine.plan->injected();
    scene.machine.plan->disarm();
    CHECK_EQ(scene.memory.torn(), false);
    CHECK_EQ(scene.memory.resident(), injected > 0);
    if (injected > 0) found = scene.memory.swap_out().unmarked_bytes;
    CHECK_EQ(found, piece);
    scene.in();
    scene.check_content();
    CHECK_EQ(scene.memory.swap_out().unmarked_bytes, 0);
  }
}

TEST(what_is_sealed_or_not_verified_is_not_audited) {
  Scene scene;
  scene.memory.seal(*scene.weights);
  scene.in();
  CHECK_EQ(scene.memory.swap_out().audited_bytes, 0);
  scene.memory.unseal(*scene.weights);
  scene.in();
  CHECK_EQ(scene.memory.swap_out().audited_bytes, most * piece);
  Scene off(Verify::off);
  off.in();
  off.stray({0, off.weights->bytes()});
  const SwapReport report = off.memory.swap_out();
  CHECK_EQ(report.audited_bytes, 0);
  CHECK_EQ(report.unmarked_bytes, 0);
}

// Those that follow upon one another are one call, whose sums are in the order of the pieces.
TEST(pieces_are_audited_together) {
  Scene scene(Verify::always, 20 * mib, 32 * mib);  // ten pieces of 2 MiB
  int digests = 0;
  scene.hooked->before = [&](DriverCall call) { digests += call == DriverCall::digest; };
  scene.in();
  CHECK_EQ(scene.memory.swap_out().audited_bytes, 20 * mib);
  CHECK_EQ(digests, 1);
  for (const std::size_t at : {std::size_t{0}, 6 * mib, 18 * mib}) {
    scene.in();
    // The audit is in two, on either side of what is marked.
    scene.memory.mark_written(*scene.weights, {{4 * mib, 4 * mib + 8}});
    digests = 0;
    scene.stray({at, at + 1});
    const SwapReport report = scene.memory.swap_out();
    CHECK_EQ(report.unmarked_bytes, 2 * mib);
    CHECK_EQ(report.audited_bytes, 18 * mib);
    CHECK_EQ(digests, 3);
    CHECK_EQ(report.copied_bytes, 0);
  }
  scene.in();
  scene.check_content();
}

// A write that reaches beyond its mark: the image has what was marked, and the rest as it was.
TEST(a_piece_that_is_marked_in_part_is_looked_at_throughout) {
  for (const Verify verify : {Verify::always, Verify::sample}) {
    std::mt19937_64 random(7);
    for (int i = 0; i < 30; ++i) {
      Scene scene(verify);
      const std::size_t at = random() % (scene.weights->bytes() - 100), bytes = 1 + random() % 99;
      const std::size_t marked = random() % (bytes + 1);
      scene.in();
      const Bytes written = pattern(random(), bytes);
      scene.machine.bench.write(scene.weights->address() + at, written);
      scene.memory.mark_written(*scene.weights, {{at, at + marked}});
      const auto tail = written.begin() + static_cast<std::ptrdiff_t>(marked);
      const auto is = scene.content[0].begin() + static_cast<std::ptrdiff_t>(at);
      std::size_t strayed = 0;
      for (std::size_t piece_of = (at + marked) / piece; piece_of * piece < at + bytes;
           ++piece_of) {
        const std::size_t begin = std::max(at + marked, piece_of * piece);
        const std::size_t end = std::min(at + bytes, (piece_of + 1) * piece);
        const bool is_in_part = marked > 0 && begin == at + marked && begin % piece != 0;
        const bool is_audited = verify == Verify::always ? piece_of < most : piece_of == 0;
        const bool is_another = !std::equal(tail + static_cast<std::ptrdiff_t>(begin - at - marked),
                                            tail + static_cast<std::ptrdiff_t>(end - at - marked),
                                            is + static_cast<std::ptrdiff_t>(begin - at));
        if (is_another && (is_in_part || is_audited)) {
          strayed += piece_at(begin, scene.weights->bytes());
        }
      }
      std::copy(written.begin(), tail, is);
      const SwapReport report = scene.memory.swap_out(random() % 3);
      CHECK_EQ(report.unmarked_bytes, strayed);
      scene.in();
      if (strayed > 0 || marked == bytes) scene.check_content();
      scene.memory.swap_out();
      scene.in();
      scene.check_content();
    }
  }
}

// What the image lacks of what was marked is no write that nobody marked: the model is refused.
TEST(a_copy_of_what_was_marked_in_part_that_goes_wrong_is_found) {
  Scene scene;
  scene.in();
  scene.machine.bench.write(scene.weights->address() + 8, {1, 2, 3, 4});
  scene.memory.mark_written(*scene.weights, {{8, 11}});
  bool is_copied = false;
  scene.hooked->before = [&](DriverCall call) {
    is_copied = is_copied || call == DriverCall::copy_to_host;
    if (is_copied && call == DriverCall::digest) scene.weights->image()[9] = std::byte{0};
  };
  CHECK_EQ(scene.memory.swap_out().unmarked_bytes, 0);
  scene.hooked->before = [](DriverCall) {};
  CHECK_THROWS(DamagedImage, scene.in());
}

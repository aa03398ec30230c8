// What an image should digest to, for who has a copy of it made.
#include "digest/digest.h"
#include "model_bench.h"

using namespace gpupool;

namespace {

constexpr std::size_t piece_bytes = digest_piece_bytes;

struct Scene {
  explicit Scene(Verify verify = Verify::always, std::size_t bytes = 2 * piece_bytes + 24)
      : memory(machine.faulty, page_bytes, 2 * piece_bytes, 2, verify),
        weights(memory.add_region(Tag::weights, bytes, -1, 4 * piece_bytes)),
        content(pattern(1, bytes)) {
    std::copy(content.begin(), content.end(), image());
    memory.adopt_image(*weights);
  }
  std::uint8_t* image() const { return reinterpret_cast<std::uint8_t*>(weights->image()); }
  // Of the first `bytes`, in pieces that end where they are cut.
  void check(std::size_t bytes) {
    const auto known = memory.known_digests(*weights);
    std::size_t at = 0;
    for (const auto& [piece, sum] : known) {
      CHECK_EQ(piece.begin, at);
      CHECK_EQ(sum, digest(&content[piece.begin], piece.bytes()));
      at = piece.end;
    }
    CHECK_EQ(at, bytes);
  }

  Machine machine{8};
  ModelMemory memory;
  RegionPtr weights;
  Bytes content;
};

}  // namespace

TEST(the_digests_of_an_image_are_those_of_what_was_saved) {
  Scene scene;
  const std::size_t bytes = scene.content.size(), more = 3 * piece_bytes + 5;
  scene.check(bytes);
  scene.image()[piece_bytes] ^= 4;  // which changes nothing of what it should be
  scene.check(bytes);
  scene.image()[piece_bytes] ^= 4;
  // Of what is gained nothing is known until it is saved.
  scene.memory.resize(*scene.weights, more, {}, 0, -1);
  scene.check(bytes);
  scene.content.resize(more, 0);
  scene.memory.swap_in(scene.machine.acquire(1, scene.memory.pages_needed()));
  scene.content[7] ^= 1;
  scene.machine.bench.write(scene.weights->address() + 7, {scene.content[7]});
  scene.memory.mark_written(*scene.weights, {{7, 8}});
  scene.memory.swap_out();
  scene.check(more);
}

TEST(what_has_no_digest_is_not_known) {
  Scene scene;
  const RegionPtr fresh = scene.memory.add_region(Tag::runtime, page_bytes, -1);
  CHECK(scene.memory.known_digests(*fresh).empty());
  const RegionPtr bare = scene.memory.add_region(Tag::workspace, page_bytes, -1);
  CHECK_THROWS(UsageError, static_cast<void>(scene.memory.known_digests(*bare)));
  scene.memory.park({scene.weights}, {scene.weights->image_changes()});
  CHECK_THROWS(UsageError, static_cast<void>(scene.memory.known_digests(*scene.weights)));
  Scene blind(Verify::off);
  CHECK(blind.memory.known_digests(*blind.weights).empty());
  CHECK_THROWS(UsageError, static_cast<void>(blind.memory.known_digests(*scene.weights)));
}

// Models that differ in one page of their weights, as fine-tunes of one base do.
#pragma once

#include "model_bench.h"

namespace gpupool {

inline constexpr std::size_t weights_bytes = 3 * page_bytes + 5000;  // four pages, the last in part

// Weights of which page 1 is its own, and the rest as every other's.
struct Tuned : Subject {
  Tuned(Machine& machine, OwnerId owner, Verify verify = Verify::always, int image_fd = -1)
      : Subject(machine, owner, verify) {
    add(Tag::runtime, 100'000);
    Region& weights = add(Tag::weights, weights_bytes, image_fd);
    add(Tag::workspace, page_bytes);
    expected[1] = pattern(7, weights_bytes);
    const Bytes own = pattern(100 + owner, page_bytes);
    std::copy(own.begin(), own.end(), expected[1].begin() + page_bytes);
    std::copy(expected[1].begin(), expected[1].end(),
              reinterpret_cast<std::uint8_t*>(weights.image()));
    memory.adopt_image(weights);
    memory.seal(weights);
  }
  Region& weights() { return *regions[1]; }
};

}  // namespace gpupool

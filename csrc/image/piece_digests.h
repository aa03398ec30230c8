// What the pieces of an image should digest to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "image/image.h"

namespace gpupool {

// Runs cut at every multiple of `piece_bytes`.
[[nodiscard]] std::vector<Run> in_pieces(std::span<const Run> runs, std::size_t piece_bytes);

// Digests by piece; one of another extent is another piece.
class PieceDigests {
 public:
  [[nodiscard]] std::optional<std::uint64_t> of(Run piece) const;
  void set(Run piece, std::uint64_t digest);
  void forget(Run piece) noexcept { entries_.erase(piece.begin); }
  // Forgets all but these.
  void keep(std::span<const Run> pieces);
  // As keep(), and digests those that it lacks from the image at `data`, on several threads where
  // there is much.
  void complete(std::span<const Run> pieces, const std::byte* data);

 private:
  struct Entry {
    std::size_t end;
    std::uint64_t digest;
  };
  std::map<std::size_t, Entry> entries_;  // by begin
};

}  // namespace gpupool

// What a swap-out looks at although nobody said that it was written.
#include "swap/swap.h"

namespace gpupool {
namespace {

// Of a swap-out where all is verified: 32 MiB of the usual pieces, as much as one call digests.
constexpr std::size_t pieces_max = 16;

}  // namespace

// Goes on where the last one ended, once around at most. Of what is marked the digests are looked
// at anyway; to what is sealed nobody can write.
ModelMemory::Audit ModelMemory::plan_audit() const {
  const std::size_t most = verify_ == Verify::sample ? pieces_max / sampled_one_in : pieces_max;
  Audit audit;
  const Place from = audit_from_;  // of regions that may have gone meanwhile
  for (std::size_t turn = 0; !regions_.empty() && turn <= regions_.size(); ++turn) {
    const std::size_t index = (from.region + turn) % regions_.size();
    const Region& region = *regions_[index];
    if (!region.image_ || region.sealed_) continue;
    const Run part{turn == 0 ? from.byte : 0, turn == regions_.size() ? from.byte : region.bytes()};
    const std::vector<Run> written = region.written_.runs();
    for (const Run& piece : pieces_of(region, region.saved_)) {
      if (piece.begin < part.begin || piece.begin >= part.end) continue;
      if (!within(piece, written).empty() || !region.digests_.of(piece)) continue;
      join(audit.loads, region, piece, true, out_.chunk_bytes());
      audit.next = {index, piece.end};
      if (++audit.pieces == most) return audit;
    }
  }
  return audit;
}

// The image is the truth for what no door has written to. To save what is found would keep a fault
// for good, and of a write that nobody marked only the pieces whose turn it was.
void ModelMemory::audited(const Audit& audit, SwapReport& report) const {
  for (const Load& load : audit.loads) {
    const std::uint64_t* sum = load.sums;
    for (const Run& piece : in_pieces({&load.run, 1}, piece_bytes_)) {
      if (*sum++ != load.region->digests_.of(piece)) report.unmarked_bytes += piece.bytes();
    }
    report.audited_bytes += load.run.bytes();
  }
}

}  // namespace gpupool

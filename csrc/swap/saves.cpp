// What a swap-out copies to the images.
#include <utility>

#include "digest/digest.h"
#include "swap/swap.h"

namespace gpupool {

// The regions of a model that leaves, or may, of which something is to be looked at.
std::vector<Region*> ModelMemory::unsaved() {
  std::vector<Region*> regions;
  for (const RegionPtr& region : regions_) {
    const bool always = region->tag_ == Tag::runtime || region->tag_ == Tag::cudagraph;
    // Once it leaves what is marked no more is saved, and may be unmapped.
    if (always && state_ == State::resident) region->written_.add({0, region->bytes()});
    if (!region->written_.empty()) regions.push_back(region.get());
  }
  return regions;
}

// Where it audits as well, where the next audit goes on.
ModelMemory::Place ModelMemory::save(const std::vector<Region*>& regions, SwapReport& report,
                                     bool audits) {
  try {
    if (verify_ != Verify::off) {
      return save_changed(regions, audits ? plan_audit() : Audit{{}, 0, audit_from_}, report);
    }
    save_written(regions, report);
    return audit_from_;
  } catch (...) {
    try {
      out_.synchronize();
    } catch (...) {
      // Reported by the first error already; the next swap-out waits for the device first.
    }
    // One that leaves would not wait.
    if (state_ == State::leaving) state_ = State::torn;
    throw;
  }
}

void ModelMemory::save_written(const std::vector<Region*>& regions, SwapReport& report) {
  const std::int64_t start = driver_->now_ns();
  for (Region* const region : regions) {
    ++region->image_changes_;
    for (const Run& written : region->written_.runs()) {
      for (const Run& run : region->image_->cut(written)) {
        out_.to_host(region->image_->data() + run.begin, region->address() + run.begin,
                     run.bytes());
        report.copied_bytes += run.bytes();
      }
    }
  }
  out_.synchronize();
  if (report.copied_bytes > 0) report.moving_ns = driver_->now_ns() - start;
  for (Region* const region : regions) {
    region->saved_.add(region->written_);
    region->written_.clear();
  }
}

// The digests are of what the device has: a copy that goes wrong is found, whichever way it went.
ModelMemory::Place ModelMemory::save_changed(const std::vector<Region*>& regions, Audit audit,
                                             SwapReport& report) {
  std::vector<Save> saves;
  std::size_t count = audit.pieces;
  for (Region* const region : regions) {
    Save save{region, region->saved_, region->digests_, {}, {}};
    save.saved.add(region->written_);
    const std::vector<Run> written = region->written_.runs();
    const std::vector<Run> pieces = pieces_of(*region, save.saved);
    save.digests.keep(pieces);
    for (const Run& piece : pieces) {
      if (!save.digests.of(piece) || !within(piece, written).empty()) save.pieces.push_back(piece);
    }
    count += save.pieces.size();
    saves.push_back(std::move(save));
  }
  if (count == 0) return audit.next;
  std::uint64_t* const is = sums(count);
  std::uint64_t* sum = is;
  for (const Save& save : saves) {
    for (const Run& piece : save.pieces) {
      out_.digest(save.region->address() + piece.begin, piece.bytes(), sum++);
    }
  }
  for (Load& load : audit.loads) {
    load.sums = sum;
    out_.digest(load.region->address() + load.run.begin, load.run.bytes(), sum);
    sum += in_pieces({&load.run, 1}, piece_bytes_).size();
  }
  out_.synchronize();

  audited(audit, report);
  const std::int64_t start = driver_->now_ns();
  sum = is;
  for (Save& save : saves) {
    const std::vector<Run> written = save.region->written_.runs();
    for (const Run& piece : save.pieces) {
      const std::uint64_t now = *sum++;
      if (save.digests.of(piece) == now) continue;
      save.digests.set(piece, now);
      // Should this swap-out fail, the image may have half of it.
      save.region->digests_.forget(piece);
      ++save.region->image_changes_;
      const std::vector<Run> marked = within(piece, written);
      if (marked != std::vector<Run>{piece}) save.in_part.push_back(piece);
      for (const Run& run : marked) {
        out_.to_host(save.region->image_->data() + run.begin, save.region->address() + run.begin,
                     run.bytes());
        report.copied_bytes += run.bytes();
      }
    }
  }
  out_.synchronize();
  if (report.copied_bytes > 0) report.moving_ns += driver_->now_ns() - start;
  for (Save& save : saves) settle_in_part(save);
  for (Save& save : saves) {
    save.region->saved_ = std::move(save.saved);
    save.region->digests_ = std::move(save.digests);
    save.region->written_.clear();
  }
  return audit.next;
}

// Of a piece that was marked in part the image has the rest as it was before. What else the device
// has there came through no door: it is reported, and gone when the model is back, as with audits.
void ModelMemory::settle_in_part(Save& save) {
  PieceDigests of_image;
  of_image.complete(save.in_part, save.region->image_->data());
  for (const Run& piece : save.in_part) {
    const std::uint64_t has = *of_image.of(piece);
    if (save.digests.of(piece) == has || !is_copied(save, piece)) continue;
    save.digests.set(piece, has);
    strayed_bytes_ += piece.bytes();
  }
}

// Whether the image has what was marked of a piece. A copy that went wrong is left for the next
// swap-in to find.
bool ModelMemory::is_copied(const Save& save, Run piece) {
  const std::vector<Run> marked = within(piece, save.region->written_.runs());
  std::uint64_t* const is = sums(marked.size());
  for (std::size_t i = 0; i < marked.size(); ++i) {
    out_.digest(save.region->address() + marked[i].begin, marked[i].bytes(), is + i);
  }
  out_.synchronize();
  for (std::size_t i = 0; i < marked.size(); ++i) {
    if (is[i] != digest(save.region->image_->data() + marked[i].begin, marked[i].bytes())) {
      return false;
    }
  }
  return true;
}

}  // namespace gpupool

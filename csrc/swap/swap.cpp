#include "swap/swap.h"

#include <algorithm>
#include <utility>

namespace gpupool {

ModelMemory::ModelMemory(DriverPtr driver, std::size_t page_bytes, std::size_t chunk_bytes,
                         std::size_t streams, Verify verify)
    : driver_(std::move(driver)),
      page_bytes_(page_bytes),
      piece_bytes_(std::min(chunk_bytes, digest_piece_bytes)),
      verify_(verify),
      in_(driver_, chunk_bytes, streams),
      out_(driver_, chunk_bytes) {
  std::size_t granularity = 0;
  GPUPOOL_CALL(driver_, page_granularity, &granularity);
  if (page_bytes == 0 || page_bytes % granularity != 0) {
    throw UsageError("page size " + std::to_string(page_bytes) +
                     " must be a multiple of the device's " + std::to_string(granularity) +
                     " bytes");
  }
}

ModelMemory::~ModelMemory() {
  // A tensor may hold a region, and so its addresses, for longer than the model lives; the pages
  // behind them go now, once nothing is in flight that touches them.
  const bool any_mapped = std::any_of(regions_.begin(), regions_.end(),
                                      [](const RegionPtr& region) { return !!region->mapping_; });
  const bool over = !any_mapped || ended();
  if (!over && sums_) sums_->abandon();
  for (const RegionPtr& region : regions_) {
    if (!region->mapping_) continue;
    if (over) {
      try {
        region->mapping_->unmap();
      } catch (...) {
        // It tries again as it goes; what stays mapped keeps its addresses, its pages in doubt.
      }
    } else {
      region->mapping_->abandon();
      if (region->image_) region->image_->abandon();
    }
    region->mapping_.reset();
  }
}

// Whether nothing that touches the regions is in flight, for who cannot wait again later.
bool ModelMemory::ended() noexcept {
  // A resident model is touched by kernels of others too, one that is torn by copies alone.
  return state_ == State::resident ? device_ended(*driver_) : in_.ended() && out_.ended();
}

void ModelMemory::require(State state, const char* what) const {
  if (state_ == state) return;
  const char* is = state_ == State::out        ? "out"
                   : state_ == State::resident ? "resident"
                   : state_ == State::closed   ? "closed"
                   : state_ == State::leaving  ? "leaving, and must be swapped out first"
                                               : "torn by an earlier fault";
  throw UsageError(std::string(what) + ": the model is " + is);
}

void ModelMemory::require_cold(const char* what) const {
  require(State::out, what);
  if (pages_mapped() > 0)
    throw UsageError(std::string(what) + ": some of its pages are warm, swap it out first");
}

std::size_t ModelMemory::all_pages() const {
  std::size_t sum = 0;
  for (const RegionPtr& region : regions_) sum += region->pages();
  return sum;
}

std::size_t ModelMemory::pages_needed() const {
  std::lock_guard lock(mutex_);
  return all_pages();
}

ModelMemory::Counts ModelMemory::mapped_counts() const {
  Counts counts;
  for (const RegionPtr& region : regions_) counts.push_back(region->pages_mapped());
  return counts;
}

std::size_t ModelMemory::pages_mapped() const {
  std::size_t sum = 0;
  for (const RegionPtr& region : regions_) sum += region->pages_mapped();
  return sum;
}

ModelMemory::Counts ModelMemory::among_first(std::size_t count) const {
  Counts counts;
  for (const RegionPtr& region : regions_) {
    counts.push_back(region->has_image() ? std::min(count, region->pages()) : 0);
    count -= counts.back();
  }
  return counts;
}

std::size_t ModelMemory::warmable_pages() const {
  std::lock_guard lock(mutex_);
  std::size_t sum = 0;
  for (const RegionPtr& region : regions_) sum += region->has_image() ? region->pages() : 0;
  return sum;
}

std::size_t ModelMemory::warm_pages() const {
  std::lock_guard lock(mutex_);
  return state_ == State::out ? pages_mapped() : 0;
}

void ModelMemory::mark_written(Region& region, const std::vector<Run>& runs) {
  std::lock_guard lock(mutex_);
  require_own(region);
  require(State::resident, "only a resident region is written");
  if (!region.image_) throw UsageError("a region without an image is never saved");
  require_unsealed(region);
  check_runs(region, runs);
  for (const Run& run : runs) region.written_.add(run);
}

void ModelMemory::adopt_image(Region& region, std::span<const std::uint64_t> digests) {
  std::lock_guard lock(mutex_);
  require_own(region);
  require_cold("an image is filled while its model is out");
  if (region.parked()) throw UsageError("the image is parked: bring it back first");
  if (!region.image_) throw UsageError("the region has no image");
  require_unsealed(region);
  // What can fail comes first: until then the device's bytes are the ones to save.
  RunSet saved;
  saved.add({0, region.bytes()});
  const std::vector<Run> known = in_pieces(saved.runs(), digest_piece_bytes);
  if (!digests.empty() && digests.size() != known.size()) {
    throw UsageError("an image of " + std::to_string(region.bytes()) + " bytes has " +
                     std::to_string(known.size()) + " digests, not " +
                     std::to_string(digests.size()));
  }
  PieceDigests pieces;
  if (verify_ != Verify::off) {
    for (std::size_t i = 0; i < digests.size(); ++i) pieces.set(known[i], digests[i]);
    // Those of pieces that are cut otherwise here are not kept.
    pieces.complete(pieces_of(region, saved), region.image_->data());
  }
  ++region.image_changes_;
  region.saved_ = std::move(saved);
  region.digests_ = std::move(pieces);
  region.written_.clear();
}

std::size_t ModelMemory::saved_bytes(const Region& region) const {
  std::lock_guard lock(mutex_);
  require_own(region);
  return region.saved_.bytes();
}

std::vector<std::pair<Run, std::uint64_t>> ModelMemory::known_digests(const Region& region) const {
  std::lock_guard lock(mutex_);
  require_own(region);
  if (!region.image_) throw UsageError("a region without an image has no digests");
  std::vector<std::pair<Run, std::uint64_t>> known;
  for (const Run& piece : pieces_of(region, region.saved_)) {
    if (const auto digest = region.digests_.of(piece)) known.emplace_back(piece, *digest);
  }
  return known;
}

// Without the lock, which is held for as long as a swap takes.
bool ModelMemory::resident() const { return state_ == State::resident; }

bool ModelMemory::torn() const {
  const State state = state_;
  return state == State::torn || state == State::leaving;
}

}  // namespace gpupool

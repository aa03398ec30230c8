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
  // A resident model is touched by kernels of others too, a torn one by copies in alone.
  return state_ == State::resident ? device_ended(*driver_) : in_.ended();
}

void ModelMemory::require(State state, const char* what) const {
  if (state_ == state) return;
  const char* is = state_ == State::out        ? "out"
                   : state_ == State::resident ? "resident"
                   : state_ == State::closed   ? "closed"
                                               : "torn by an earlier fault";
  throw UsageError(std::string(what) + ": the model is " + is);
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

std::vector<Placed> ModelMemory::map_all(const std::vector<PagePtr>& pages, std::size_t clean) {
  std::vector<std::vector<Run>> gaps;
  std::vector<std::size_t> counts;
  for (const RegionPtr& region : regions_) {
    gaps.push_back(region->saved_.gaps(region->span_bytes()));
    counts.push_back(region->pages());
  }
  std::vector<Placed> placed = place(pages, clean, gaps, counts, page_bytes_);
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    Region& region = *regions_[i];
    region.mapping_.emplace(driver_, region.reservation_, placed[i].pages);
    region.mapping_->map();
  }
  return placed;
}

SwapReport ModelMemory::swap_in(const std::vector<PagePtr>& pages, std::size_t clean,
                                const std::stop_token& stop) {
  std::lock_guard lock(mutex_);
  require(State::out, "swap_in needs a model that is out");
  check_pages(pages, all_pages(), clean);
  SwapReport report;
  report.pages = pages.size();
  const std::int64_t start = driver_->now_ns();
  const std::vector<Load> loads = plan_loads();
  try {
    const std::vector<Placed> placed = map_all(pages, clean);
    report.map_ns = driver_->now_ns() - start;
    restore(loads, placed, stop, report);
  } catch (...) {
    state_ = State::torn;
    try {
      discard();
      state_ = State::out;
    } catch (...) {
      // Reported by the first error already.
    }
    throw;
  }
  report.total_ns = driver_->now_ns() - start;
  report.copy_ns = report.total_ns - report.map_ns;
  state_ = State::resident;
  return report;
}

void ModelMemory::discard() {
  // Nothing may be in flight when the pages go; what save() enqueued it has waited for.
  in_.synchronize();
  for (const RegionPtr& region : regions_) {
    if (region->mapping_) region->mapping_->unmap();
  }
  for (const RegionPtr& region : regions_) region->mapping_.reset();
}

void ModelMemory::unmap_or_undo() {
  try {
    discard();
  } catch (...) {
    state_ = State::torn;
    for (const RegionPtr& region : regions_) region->mapping_->map();  // the same pages, untouched
    state_ = State::resident;
    throw;
  }
}

SwapReport ModelMemory::swap_out() {
  std::lock_guard lock(mutex_);
  if (state_ != State::torn) require(State::resident, "swap_out needs a resident model");
  SwapReport report;
  const std::int64_t start = driver_->now_ns();
  if (state_ == State::resident) {
    // Kernels of others, torch's among them, may still write what is about to be saved.
    GPUPOOL_CALL(driver_, context_synchronize);
    try {
      save(report);
    } catch (...) {
      try {
        out_.synchronize();
      } catch (...) {
        // Reported by the first error already; the next swap-out waits for the device first.
      }
      throw;
    }
  }
  const std::int64_t saved = driver_->now_ns();
  report.pages = all_pages();
  if (state_ == State::resident) {
    unmap_or_undo();
  } else {
    discard();
  }
  state_ = State::out;
  report.total_ns = driver_->now_ns() - start;
  report.copy_ns = saved - start;
  report.map_ns = report.total_ns - report.copy_ns;
  return report;
}

void ModelMemory::mark_written(Region& region, const std::vector<Run>& runs) {
  std::lock_guard lock(mutex_);
  require_own(region);
  require(State::resident, "only a resident region is written");
  if (!region.image_) throw UsageError("a region without an image is never saved");
  check_runs(region, runs);
  for (const Run& run : runs) region.written_.add(run);
}

void ModelMemory::adopt_image(Region& region) {
  std::lock_guard lock(mutex_);
  require_own(region);
  require(State::out, "an image is filled while its model is out");
  if (!region.image_) throw UsageError("the region has no image");
  // What can fail comes first: until then the device's bytes are the ones to save.
  RunSet saved;
  saved.add({0, region.bytes()});
  PieceDigests digests;
  if (verify_ != Verify::off) digests.complete(pieces_of(region, saved), region.image_->data());
  region.saved_ = std::move(saved);
  region.digests_ = std::move(digests);
  region.written_.clear();
}

std::size_t ModelMemory::saved_bytes(const Region& region) const {
  std::lock_guard lock(mutex_);
  require_own(region);
  return region.saved_.bytes();
}

bool ModelMemory::resident() const {
  std::lock_guard lock(mutex_);
  return state_ == State::resident;
}

bool ModelMemory::torn() const {
  std::lock_guard lock(mutex_);
  return state_ == State::torn;
}

}  // namespace gpupool

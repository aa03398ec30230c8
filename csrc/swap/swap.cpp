#include "swap/swap.h"

#include <algorithm>
#include <utility>

namespace gpupool {

Region::Region(Tag tag, std::size_t bytes, ReservationPtr reservation,
               std::unique_ptr<HostMemory> image)
    : tag_(tag), bytes_(bytes), reservation_(std::move(reservation)), image_(std::move(image)) {
  // The image of fresh weights is empty: their first swap-out saves all of them.
  if (tag == Tag::weights) written_.add({0, bytes});
}

ModelMemory::ModelMemory(DriverPtr driver, std::size_t page_bytes, std::size_t chunk_bytes)
    : driver_(std::move(driver)),
      page_bytes_(page_bytes),
      in_(driver_, chunk_bytes),
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
  // behind them go now, once no copy is left in flight.
  try {
    discard();
  } catch (...) {
    // The mappings try again as they go; what stays mapped keeps its addresses and its memory.
  }
  for (const RegionPtr& region : regions_) region->mapping_.reset();
}

void ModelMemory::require(State state, const char* what) const {
  if (state_ == state) return;
  const char* is = state_ == State::out        ? "out"
                   : state_ == State::resident ? "resident"
                                               : "torn by an earlier fault";
  throw UsageError(std::string(what) + ": the model is " + is);
}

std::size_t ModelMemory::pages_of(const Region& region) const {
  return region.span_bytes() / page_bytes_;
}

RegionPtr ModelMemory::add_region(Tag tag, std::size_t bytes, int image_fd) {
  std::lock_guard lock(mutex_);
  require(State::out, "a region can be added only while its model is out");
  if (bytes == 0) throw UsageError("a region must have at least one byte");
  const std::size_t span = (bytes + page_bytes_ - 1) / page_bytes_ * page_bytes_;
  auto reservation = std::make_shared<const Reservation>(driver_, span);
  std::unique_ptr<HostMemory> image;
  if (tag != Tag::workspace) image = std::make_unique<HostMemory>(driver_, image_fd, bytes);
  regions_.push_back(RegionPtr(new Region(tag, bytes, std::move(reservation), std::move(image))));
  return regions_.back();
}

std::size_t ModelMemory::pages_needed() const {
  std::lock_guard lock(mutex_);
  std::size_t sum = 0;
  for (const RegionPtr& region : regions_) sum += pages_of(*region);
  return sum;
}

void ModelMemory::map_all(std::vector<PagePtr> pages) {
  auto next = pages.begin();
  for (const RegionPtr& region : regions_) {
    const auto end = next + static_cast<std::ptrdiff_t>(pages_of(*region));
    region->mapping_.emplace(driver_, region->reservation_, std::vector<PagePtr>(next, end));
    region->mapping_->map();
    next = end;
  }
}

void ModelMemory::restore(SwapReport& report) {
  for (const RegionPtr& region : regions_) {
    const DevicePtr base = region->address();
    for (const Run& run : region->saved_.runs()) {
      in_.to_device(base + run.begin, region->image() + run.begin, run.bytes());
      report.copied_bytes += run.bytes();
    }
    for (const Run& run : region->saved_.gaps(region->span_bytes())) {
      in_.fill(base + run.begin, 0, run.bytes());
      report.filled_bytes += run.bytes();
    }
  }
  in_.synchronize();
}

SwapReport ModelMemory::swap_in(std::vector<PagePtr> pages) {
  std::lock_guard lock(mutex_);
  require(State::out, "swap_in needs a model that is out");
  std::size_t needed = 0;
  for (const RegionPtr& region : regions_) needed += pages_of(*region);
  const bool right_size = std::all_of(pages.begin(), pages.end(), [&](const PagePtr& page) {
    return page != nullptr && page->bytes() == page_bytes_;
  });
  if (pages.size() != needed || !right_size) {
    throw UsageError("swap_in needs " + std::to_string(needed) + " pages of " +
                     std::to_string(page_bytes_) + " bytes, got " + std::to_string(pages.size()));
  }
  SwapReport report;
  report.pages = needed;
  const std::int64_t start = driver_->now_ns();
  try {
    map_all(std::move(pages));
    report.map_ns = driver_->now_ns() - start;
    restore(report);
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

void ModelMemory::save(SwapReport& report) {
  for (const RegionPtr& region : regions_) {
    if (region->tag_ == Tag::runtime || region->tag_ == Tag::cudagraph) {
      region->written_.add({0, region->bytes_});
    }
    for (const Run& run : region->written_.runs()) {
      out_.to_host(region->image() + run.begin, region->address() + run.begin, run.bytes());
      report.copied_bytes += run.bytes();
    }
  }
  out_.synchronize();
  for (const RegionPtr& region : regions_) {
    region->saved_.add(region->written_);
    region->written_.clear();
  }
}

void ModelMemory::discard() {
  // Nothing may be in flight when the pages go.
  in_.synchronize();
  out_.synchronize();
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
        // Reported by the first error already; discard() waits again before anything is unmapped.
      }
      throw;
    }
  }
  const std::int64_t saved = driver_->now_ns();
  for (const RegionPtr& region : regions_) report.pages += pages_of(*region);
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

void ModelMemory::check_runs(const Region& region, const std::vector<Run>& runs) const {
  for (const Run& run : runs) {
    if (run.begin > run.end || run.end > region.bytes_) {
      throw UsageError("bytes " + std::to_string(run.begin) + " to " + std::to_string(run.end) +
                       " are not in a region of " + std::to_string(region.bytes_) + " bytes");
    }
  }
}

void ModelMemory::mark_written(Region& region, const std::vector<Run>& runs) {
  std::lock_guard lock(mutex_);
  require(State::resident, "only a resident region is written");
  if (region.tag_ == Tag::workspace) throw UsageError("a workspace is never saved");
  check_runs(region, runs);
  for (const Run& run : runs) region.written_.add(run);
}

void ModelMemory::adopt_image(Region& region) {
  std::lock_guard lock(mutex_);
  require(State::out, "an image is filled while its model is out");
  if (region.tag_ == Tag::workspace) throw UsageError("a workspace has no image");
  region.written_.clear();
  region.saved_.add({0, region.bytes_});
}

std::size_t ModelMemory::saved_bytes(const Region& region) const {
  std::lock_guard lock(mutex_);
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

// How a model goes out, or some of the pages that stayed.
#include <algorithm>
#include <utility>

#include "swap/swap.h"

namespace gpupool {

// Unmaps what is beyond the first so many pages of each region; on an error some of it is left.
void ModelMemory::unmap_until(const Counts& until) {
  // Nothing may be in flight when the pages go; what save() enqueued it has waited for.
  in_.synchronize();
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    std::optional<Mapping>& mapping = regions_[i]->mapping_;
    if (!mapping) continue;
    if (until[i] > 0) {
      mapping->shrink(until[i]);
    } else {
      mapping->unmap();
      mapping.reset();
    }
  }
}

// The same, of a model whose pages have what they should and that nothing is in flight for: on an
// error all of them are mapped as before, or it is torn.
std::vector<PagePtr> ModelMemory::unmap_or_undo(const Counts& until) {
  const State before = state_;
  std::vector<PagePtr> gone;
  gone.reserve(pages_mapped());
  std::vector<std::vector<PagePtr>> cut(regions_.size());
  try {
    for (std::size_t i = 0; i < regions_.size(); ++i) {
      std::optional<Mapping>& mapping = regions_[i]->mapping_;
      if (!mapping) continue;
      if (until[i] > 0) {
        cut[i] = mapping->shrink(until[i]);
      } else {
        mapping->unmap();
      }
    }
  } catch (...) {
    state_ = State::torn;
    for (std::size_t i = 0; i < regions_.size(); ++i) {
      std::optional<Mapping>& mapping = regions_[i]->mapping_;
      if (!mapping) continue;
      mapping->map();  // the same pages, untouched
      mapping->extend(cut[i]);
    }
    make_read_only();
    state_ = before;
    throw;
  }
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    std::optional<Mapping>& mapping = regions_[i]->mapping_;
    if (!mapping) continue;
    const std::vector<PagePtr>& pages = until[i] > 0 ? cut[i] : mapping->pages();
    gone.insert(gone.end(), pages.begin(), pages.end());
    if (until[i] == 0) mapping.reset();
  }
  return gone;
}

std::vector<PagePtr> ModelMemory::cool(std::size_t count) {
  std::lock_guard lock(mutex_);
  require(State::out, "pages are cooled while their model is out");
  const std::size_t warm = pages_mapped();
  if (count > warm) {
    throw UsageError("of " + std::to_string(warm) + " warm pages " + std::to_string(count) +
                     " cannot go");
  }
  std::vector<PagePtr> gone = unmap_or_undo(among_first(warm - count));
  as_left_ = std::min(as_left_, warm - count);
  return gone;
}

SwapReport ModelMemory::swap_out(std::size_t keep) {
  std::lock_guard lock(mutex_);
  if (state_ != State::torn) require(State::resident, "swap_out needs a resident model");
  SwapReport report;
  Place audit_next = audit_from_;
  const std::int64_t start = driver_->now_ns();
  if (state_ == State::resident) {
    // Kernels of others, torch's among them, may still write what is about to be saved.
    GPUPOOL_CALL(driver_, context_synchronize);
    try {
      audit_next = save(report);
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
  report.pages = pages_mapped();
  if (state_ == State::resident) {
    unmap_or_undo(among_first(keep));
  } else {
    unmap_until(Counts(regions_.size(), 0));
  }
  as_left_ = pages_mapped();
  report.pages -= as_left_;
  state_ = State::out;
  // Not before: what a swap-out that failed has found the next one finds too, and reports.
  audit_from_ = audit_next;
  report.unmarked_bytes += std::exchange(strayed_bytes_, 0);
  distrusted_ = distrusted_ || report.unmarked_bytes > 0;
  report.total_ns = driver_->now_ns() - start;
  report.copy_ns = saved - start;
  report.map_ns = report.total_ns - report.copy_ns;
  return report;
}

}  // namespace gpupool

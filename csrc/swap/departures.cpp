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

// What has nothing to be saved goes once it has been audited, and another region once it is saved.
std::vector<PagePtr> ModelMemory::drain(std::size_t keep) {
  std::lock_guard lock(mutex_);
  if (state_ == State::torn) return {};
  const bool first = state_ == State::resident;
  if (state_ != State::leaving) require(State::resident, "drain needs a resident model");
  const std::vector<Region*> left = unsaved();
  const Counts mapped = mapped_counts();
  const Counts stay = among_first(first ? keep : std::min(keep, drained_keep_));
  Counts until = mapped;
  std::vector<Region*> saves;
  if (!first && left.size() > 1) saves.push_back(left.front());
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    Region* const region = regions_[i].get();
    const bool goes = first ? std::count(left.begin(), left.end(), region) == 0
                            : !saves.empty() && region == saves.front();
    if (goes) until[i] = std::min(mapped[i], stay[i]);
  }
  if (left.empty() || until == mapped) return {};
  const std::int64_t start = driver_->now_ns();
  if (first) {
    // Kernels of others, torch's among them, may still use what is about to go.
    GPUPOOL_CALL(driver_, context_synchronize);
  }
  SwapReport part;
  const Place audit_next = save(saves, part, first);
  part.copy_ns = driver_->now_ns() - start;
  // Also should what follows fail half way.
  drained_ = first ? part : drained_ + part;
  drains_ = true;
  std::vector<PagePtr> gone = unmap_or_undo(until);
  state_ = State::leaving;
  audit_from_ = audit_next;
  drained_keep_ = first ? keep : std::min(keep, drained_keep_);
  drained_.pages += gone.size();
  const std::int64_t took = driver_->now_ns() - start;
  drained_.total_ns += took;
  drained_.map_ns += took - part.copy_ns;
  return gone;
}

SwapReport ModelMemory::swap_out(std::size_t keep) {
  std::lock_guard lock(mutex_);
  const bool whole = state_ == State::resident;
  if (!whole && state_ != State::leaving && state_ != State::torn) {
    require(State::resident, "swap_out needs a resident model");
  }
  if (whole) drained_ = {};
  if (state_ == State::leaving) keep = std::min(keep, drained_keep_);
  SwapReport report;
  Place audit_next = audit_from_;
  const std::int64_t start = driver_->now_ns();
  const bool saves = state_ != State::torn || drains_;
  if (saves && state_ != State::leaving) {
    // Kernels of others, torch's among them, may still write what is about to be saved.
    GPUPOOL_CALL(driver_, context_synchronize);
  }
  if (saves) audit_next = save(unsaved(), report, whole);
  const std::int64_t saved = driver_->now_ns();
  report.pages = pages_mapped();
  if (state_ != State::torn) {
    unmap_or_undo(among_first(keep));
  } else {
    unmap_until(Counts(regions_.size(), 0));
  }
  as_left_ = pages_mapped();
  report.pages -= as_left_;
  state_ = State::out;
  // Not before: what a swap-out that failed has found the next one finds too, and reports.
  audit_from_ = audit_next;
  report.total_ns = driver_->now_ns() - start;
  report.copy_ns = saved - start;
  report.map_ns = report.total_ns - report.copy_ns;
  report = std::exchange(drained_, {}) + report;
  drains_ = false;
  report.unmarked_bytes += std::exchange(strayed_bytes_, 0);
  distrusted_ = distrusted_ || report.unmarked_bytes > 0;
  return report;
}

}  // namespace gpupool

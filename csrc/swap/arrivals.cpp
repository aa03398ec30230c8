// How a model comes in, or some of its pages ahead of it.
#include <numeric>

#include "swap/swap.h"

namespace gpupool {

// Whether pages that were zeroed once may be behind it unlooked at: steps write to a KV cache and
// to a workspace before they read, and of what they read first clean pages may have gone bad since.
bool ModelMemory::takes_clean(const Region& region) const {
  return verify_ == Verify::off || region.tag_ == Tag::kv_cache || region.tag_ == Tag::workspace;
}

std::vector<Placed> ModelMemory::map_more(const Counts& until, const std::vector<PagePtr>& pages,
                                          std::size_t clean, const Shares& shares, bool is_ahead) {
  const Counts before = mapped_counts(), as_left = among_first(as_left_);
  std::vector<std::vector<Run>> unsaved, gaps;
  Counts more;
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    const Region& region = *regions_[i];
    unsaved.push_back(region.saved_.gaps(region.span_bytes()));
    const std::size_t from = before[i] * page_bytes_;
    gaps.push_back(within({from, takes_clean(region) ? until[i] * page_bytes_ : from}, unsaved[i]));
    for (Run& gap : gaps[i]) gap = {gap.begin - from, gap.end - from};
    more.push_back(until[i] - before[i]);
  }
  Shares given(regions_.size());
  for (std::size_t i = 0; i < shares.size(); ++i) {
    given[i].assign(shares[i].begin() + static_cast<std::ptrdiff_t>(before[i]), shares[i].end());
  }
  std::vector<Placed> placed = place(pages, clean, gaps, more, page_bytes_, given);
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    Region& region = *regions_[i];
    if (region.mapping_) {
      region.mapping_->extend(placed[i].pages);
    } else if (more[i] > 0) {
      region.mapping_.emplace(driver_, region.reservation_, placed[i].pages);
      region.mapping_->map();
    }
    const std::size_t from = before[i] * page_bytes_;
    for (Run& run : placed[i].zeros) run = {run.begin + from, run.end + from};
    // What was never saved reads as zeros, whatever the model left there, and whatever became of
    // those that came ahead.
    const bool once_more = !is_ahead && !region.sealed_;
    Run rest{once_more ? 0 : from, until[i] * page_bytes_};
    if (takes_clean(region)) rest = {0, once_more ? as_left[i] * page_bytes_ : 0};
    for (const Run& run : within(rest, unsaved[i])) placed[i].zeros.push_back(run);
  }
  return placed;
}

SwapReport ModelMemory::arrive(const Counts& until, const std::vector<PagePtr>& pages,
                               std::size_t clean, const std::stop_token& stop, const Shares& shares,
                               bool is_ahead) {
  SwapReport report;
  report.pages = pages.size();
  const std::int64_t start = driver_->now_ns();
  const std::vector<Load> loads = plan_loads(until, shares, is_ahead);
  const Counts before = mapped_counts();
  try {
    const std::vector<Placed> placed = map_more(until, pages, clean, shares, is_ahead);
    report.map_ns = driver_->now_ns() - start;
    restore(loads, placed, stop, report);
    make_read_only();
  } catch (...) {
    state_ = State::torn;
    try {
      unmap_until(before);
      state_ = State::out;
    } catch (...) {
      // Reported by the first error already.
    }
    throw;
  }
  report.total_ns = driver_->now_ns() - start;
  report.copy_ns = report.total_ns - report.map_ns;
  return report;
}

SwapReport ModelMemory::swap_in(const std::vector<PagePtr>& pages, std::size_t clean,
                                const std::stop_token& stop, std::span<const SharedPage> shared) {
  std::lock_guard lock(mutex_);
  require(State::out, "swap_in needs a model that is out");
  require_unparked("swap_in needs what its model had");
  Counts until;
  for (const RegionPtr& region : regions_) until.push_back(region->pages());
  const Shares shares = shares_of(shared, pages, clean, until);
  ++swap_ins_;  // also one that fails is a turn of the sample
  SwapReport report = arrive(until, pages, clean, stop, shares, false);
  distrusted_ = false;
  report.shared_bytes = shared.size() * page_bytes_;
  state_ = State::resident;
  return report;
}

SwapReport ModelMemory::warm(const std::vector<PagePtr>& pages, std::size_t clean,
                             const std::stop_token& stop, std::span<const SharedPage> shared) {
  std::lock_guard lock(mutex_);
  require(State::out, "pages are warmed while their model is out");
  require_unparked("pages are warmed with what their model had");
  const std::size_t more = pages.size() + shared.size(), count = pages_mapped() + more;
  const Counts until = among_first(count);
  if (std::accumulate(until.begin(), until.end(), std::size_t{0}) < count) {
    throw UsageError(std::to_string(more) + " pages are more than can be warm beside " +
                     std::to_string(pages_mapped()));
  }
  const Shares shares = shares_of(shared, pages, clean, until);
  SwapReport report = arrive(until, pages, clean, stop, shares, true);
  report.shared_bytes = shared.size() * page_bytes_;
  return report;
}

}  // namespace gpupool

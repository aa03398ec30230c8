#include <algorithm>
#include <iterator>

#include "image/image.h"

namespace gpupool {

void RunSet::add(Run run) {
  if (run.begin >= run.end) return;
  // The one step that can fail comes first, so that a set out of memory has lost nothing.
  auto it = runs_.try_emplace(run.begin, run.end).first;
  it->second = std::max(it->second, run.end);
  if (it != runs_.begin() && std::prev(it)->second >= run.begin) {
    const auto before = std::prev(it);
    before->second = std::max(before->second, it->second);
    runs_.erase(it);
    it = before;
  }
  for (auto next = std::next(it); next != runs_.end() && next->first <= it->second;) {
    it->second = std::max(it->second, next->second);
    next = runs_.erase(next);
  }
}

void RunSet::add(const RunSet& other) {
  if (&other == this) return;
  for (const auto& [begin, end] : other.runs_) add({begin, end});
}

void RunSet::remove(Run run) {
  if (run.begin >= run.end) return;
  // Cut where `run` ends, then where it begins; a cut is the one step that can fail, and a set
  // that is cut is the same set.
  for (const std::size_t at : {run.end, run.begin}) {
    auto it = runs_.lower_bound(at);
    if (it == runs_.begin()) continue;
    --it;
    if (it->second <= at) continue;
    runs_.emplace(at, it->second);
    it->second = at;
  }
  runs_.erase(runs_.lower_bound(run.begin), runs_.lower_bound(run.end));
}

std::vector<Run> RunSet::runs() const {
  std::vector<Run> all;
  all.reserve(runs_.size());
  for (const auto& [begin, end] : runs_) all.push_back({begin, end});
  return all;
}

std::vector<Run> RunSet::gaps(std::size_t bytes) const {
  std::vector<Run> all;
  std::size_t at = 0;
  for (const auto& [begin, end] : runs_) {
    if (at >= bytes) break;
    if (begin > at) all.push_back({at, std::min(begin, bytes)});
    at = end;
  }
  if (at < bytes) all.push_back({at, bytes});
  return all;
}

std::size_t RunSet::bytes() const {
  std::size_t sum = 0;
  for (const auto& [begin, end] : runs_) sum += end - begin;
  return sum;
}

std::vector<Run> within(Run part, const std::vector<Run>& runs) {
  std::vector<Run> found;
  auto it = std::lower_bound(runs.begin(), runs.end(), part,
                             [](Run run, Run of) { return run.end <= of.begin; });
  for (; it != runs.end() && it->begin < part.end; ++it) {
    found.push_back({std::max(it->begin, part.begin), std::min(it->end, part.end)});
  }
  return found;
}

}  // namespace gpupool

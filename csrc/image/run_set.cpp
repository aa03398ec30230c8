#include <algorithm>
#include <iterator>

#include "image/image.h"

namespace gpupool {

void RunSet::add(Run run) {
  if (run.begin >= run.end) return;
  auto it = runs_.upper_bound(run.begin);
  if (it != runs_.begin() && std::prev(it)->second >= run.begin) --it;
  while (it != runs_.end() && it->first <= run.end) {
    run.begin = std::min(run.begin, it->first);
    run.end = std::max(run.end, it->second);
    it = runs_.erase(it);
  }
  runs_.emplace(run.begin, run.end);
}

void RunSet::add(const RunSet& other) {
  if (&other == this) return;
  for (const auto& [begin, end] : other.runs_) add({begin, end});
}

void RunSet::remove(Run run) {
  if (run.begin >= run.end) return;
  auto it = runs_.upper_bound(run.begin);
  if (it != runs_.begin() && std::prev(it)->second > run.begin) --it;
  while (it != runs_.end() && it->first < run.end) {
    const Run old{it->first, it->second};
    it = runs_.erase(it);
    if (old.begin < run.begin) runs_.emplace(old.begin, run.begin);
    if (old.end > run.end) runs_.emplace(run.end, old.end);
  }
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

}  // namespace gpupool

#include "swap/placement.h"

#include <algorithm>

namespace gpupool {
namespace {

// Whether each page of a region has a byte in one of its gaps.
std::vector<bool> wants_zeros(const std::vector<Run>& gaps, std::size_t count,
                              std::size_t page_bytes) {
  std::vector<bool> wants(count, false);
  for (const Run& gap : gaps) {
    for (std::size_t i = gap.begin / page_bytes; i * page_bytes < gap.end; ++i) wants[i] = true;
  }
  return wants;
}

// What of the gaps does not lie on a clean page.
std::vector<Run> on_dirty_pages(const std::vector<Run>& gaps, const std::vector<bool>& clean,
                                std::size_t page_bytes) {
  RunSet left;
  for (const Run& gap : gaps) left.add(gap);
  for (std::size_t i = 0; i < clean.size(); ++i) {
    if (clean[i]) left.remove({i * page_bytes, (i + 1) * page_bytes});
  }
  return left.runs();
}

}  // namespace

std::vector<Placed> place(const std::vector<PagePtr>& pages, std::size_t clean,
                          const std::vector<std::vector<Run>>& gaps,
                          const std::vector<std::size_t>& counts, std::size_t page_bytes,
                          const std::vector<std::vector<PagePtr>>& given) {
  std::vector<Placed> placed(counts.size());
  std::size_t next_clean = 0, next_dirty = clean;
  for (std::size_t region = 0; region < counts.size(); ++region) {
    const std::vector<bool> wants = wants_zeros(gaps[region], counts[region], page_bytes);
    std::vector<bool> is_clean(counts[region]);
    for (std::size_t i = 0; i < counts[region]; ++i) {
      if (region < given.size() && i < given[region].size() && given[region][i] != nullptr) {
        is_clean[i] = true;
        placed[region].pages.push_back(given[region][i]);
        continue;
      }
      const bool any_clean = next_clean < clean, any_dirty = next_dirty < pages.size();
      is_clean[i] = any_clean && (wants[i] || !any_dirty);
      placed[region].pages.push_back(pages[is_clean[i] ? next_clean++ : next_dirty++]);
    }
    placed[region].zeros = on_dirty_pages(gaps[region], is_clean, page_bytes);
  }
  return placed;
}

}  // namespace gpupool

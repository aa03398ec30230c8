// Which page goes where: every page once, clean ones behind gaps, and zeros wherever they are due.
#include "swap/placement.h"

#include <random>
#include <set>

#include "bench.h"

using namespace gpupool;

namespace {

constexpr std::size_t unit = 8;  // bytes of a page here: place() looks at no byte of it

bool covers(const std::vector<Run>& runs, std::size_t byte) {
  return std::any_of(runs.begin(), runs.end(),
                     [&](const Run& run) { return run.begin <= byte && byte < run.end; });
}

}  // namespace

TEST(any_gaps_on_any_pages) {
  const DriverPtr driver = open_test_driver();
  std::vector<PagePtr> all;
  for (int i = 0; i < 12; ++i) all.push_back(Page::create(driver, page_bytes));
  std::mt19937_64 random(7);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::size_t> counts(1 + below(4));
    std::vector<std::vector<Run>> gaps;
    std::size_t total = 0;
    for (std::size_t& count : counts) {
      count = below(4);
      total += count;
      RunSet saved;
      const std::size_t bytes = count * unit;
      for (std::size_t n = below(3); n > 0 && bytes > 0; --n) {
        const std::size_t begin = below(bytes);
        saved.add({begin, begin + 1 + below(bytes - begin)});
      }
      gaps.push_back(saved.gaps(bytes));
    }
    const std::vector<PagePtr> pages(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(total));
    const std::size_t clean = below(total + 1);
    const std::set<PagePtr> clean_pages(pages.begin(),
                                        pages.begin() + static_cast<std::ptrdiff_t>(clean));
    const std::vector<Placed> placed = place(pages, clean, gaps, counts, unit);

    std::set<PagePtr> used;
    std::size_t wanting = 0, clean_behind_gaps = 0;
    for (std::size_t region = 0; region < counts.size(); ++region) {
      CHECK_EQ(placed[region].pages.size(), counts[region]);
      for (std::size_t i = 0; i < counts[region]; ++i) {
        const PagePtr& page = placed[region].pages[i];
        CHECK(used.insert(page).second);
        const bool is_clean = clean_pages.count(page) == 1;
        bool wants = false;
        for (std::size_t byte = i * unit; byte < (i + 1) * unit; ++byte) {
          const bool gap = covers(gaps[region], byte);
          wants |= gap;
          CHECK_EQ(covers(placed[region].zeros, byte), gap && !is_clean);
        }
        wanting += wants;
        clean_behind_gaps += wants && is_clean;
      }
    }
    CHECK_EQ(used.size(), total);
    CHECK_EQ(clean_behind_gaps, std::min(wanting, clean));  // none wasted on what is overwritten
  }
}

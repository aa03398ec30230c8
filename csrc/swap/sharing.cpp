// Pages and images that several models have, because they have the same bytes.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "swap/swap.h"

namespace gpupool {
namespace {

// Of an image that its region has, and who asks.
void require_unseen(const std::shared_ptr<HostMemory>& image) {
  if (image.use_count() > 2) throw UsageError("somebody looks at the image: let go of it first");
}

}  // namespace

void ModelMemory::require_unsealed(const Region& region) {
  if (region.sealed_) throw UsageError("the region is sealed: its bytes cannot be changed");
}

void ModelMemory::seal(Region& region) {
  std::lock_guard lock(mutex_);
  require_own(region);
  require_cold("a region is sealed while its model is out");
  if (!region.image_) throw UsageError("a region without an image cannot be sealed");
  if (page_bytes_ % piece_bytes_ != 0) {
    throw UsageError("pages of " + std::to_string(page_bytes_) + " bytes are not whole pieces of " +
                     std::to_string(piece_bytes_) + " to be verified: use larger pages");
  }
  if (region.saved_.bytes() < region.bytes()) {
    throw UsageError("the image of a region that is sealed must have all of it");
  }
  if (!region.arena_.expired()) throw UsageError("an allocator still has the region");
  region.sealed_ = true;
}

void ModelMemory::unseal(Region& region) {
  std::lock_guard lock(mutex_);
  require_own(region);
  require_cold("a region is unsealed while its model is out");
  region.sealed_ = false;
}

bool ModelMemory::replace_image(Region& region, std::span<const Extent> extents, bool is_shared) {
  std::lock_guard lock(mutex_);
  require_own(region);
  require(State::out, "an image is replaced while its model is out");
  const std::shared_ptr<HostMemory> old = region.share_image();
  if (!old) throw UsageError("the region has no image");
  // A piece that lay in two of them would have no digest.
  for (std::size_t i = 0; i + 1 < extents.size(); ++i) {
    if (extents[i].bytes % piece_bytes_ != 0) {
      throw UsageError("an image is cut at multiples of " + std::to_string(piece_bytes_) +
                       " bytes, not after " + std::to_string(extents[i].bytes));
    }
  }
  const auto& gone_bytes = is_shared ? gone_shared_bytes_ : gone_image_bytes_;
  if (extents.empty()) {
    const std::lock_guard looking(region.image_mutex_);
    require_unseen(old);
    old->report_to(gone_bytes);
    region.image_is_shared_ = is_shared;
    return true;
  }
  auto image = std::make_shared<HostMemory>(driver_, extents, region.capacity_bytes());
  if (image->bytes() != old->bytes()) {
    throw UsageError("an image of " + std::to_string(old->bytes()) + " bytes, not " +
                     std::to_string(image->bytes()) + ", is to be replaced");
  }
  if (std::memcmp(image->data(), old->data(), region.bytes()) != 0) {
    throw DamagedImage("what is to be the image of a region does not have its bytes");
  }
  const std::lock_guard looking(region.image_mutex_);
  require_unseen(old);
  image->report_to(gone_bytes);
  if (is_shared) old->report_to(nullptr);
  region.image_ = std::move(image);
  region.image_is_shared_ = is_shared;
  return old->let_go();
}

std::size_t ModelMemory::take_gone_shared_bytes() noexcept {
  return gone_shared_bytes_->exchange(0);
}

// Of what comes until there is so much of each region: `pages`, of which some are clean, and these.
ModelMemory::Shares ModelMemory::shares_of(std::span<const SharedPage> shared,
                                           const std::vector<PagePtr>& pages, std::size_t clean,
                                           const Counts& until) const {
  std::vector<PagePtr> all = pages;
  for (const SharedPage& one : shared) all.push_back(one.page);
  const std::size_t count = std::accumulate(until.begin(), until.end(), std::size_t{0});
  check_pages(all, count - pages_mapped(), clean);
  if (clean > pages.size()) throw UsageError("of shared pages none is clean");
  Shares shares;
  if (shared.empty()) return shares;
  for (const RegionPtr& region : regions_) shares.emplace_back(region->pages());
  for (const SharedPage& one : shared) {
    std::size_t i = 0, at = one.index;
    while (i < regions_.size() && (!regions_[i]->image_ || at >= regions_[i]->pages())) {
      if (regions_[i]->image_) at -= regions_[i]->pages();
      ++i;
    }
    const bool fits = i < regions_.size() && regions_[i]->sealed_ &&
                      at >= regions_[i]->pages_mapped() && at < until[i] &&
                      (at + 1) * page_bytes_ <= regions_[i]->bytes() && !shares[i][at];
    if (!fits) {
      throw UsageError("page " + std::to_string(one.index) +
                       " of the model is not one that can be shared, or that comes now");
    }
    shares[i][at] = one.page;
  }
  return shares;
}

// What of sealed regions is mapped.
void ModelMemory::make_read_only() {
  for (const RegionPtr& region : regions_) {
    if (region->sealed_ && region->mapping_) region->mapping_->make_read_only();
  }
}

}  // namespace gpupool

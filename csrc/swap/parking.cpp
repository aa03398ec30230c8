// Images that are kept elsewhere for a while, and come back.
#include <algorithm>
#include <utility>

#include "digest/digest.h"
#include "swap/swap.h"

namespace gpupool {

bool Region::has_image() const noexcept { return image_ != nullptr || parked_; }

// Null, and nothing has changed, if somebody shares it.
std::shared_ptr<HostMemory> Region::take_image_unshared() {
  const std::lock_guard lock(image_mutex_);
  return image_.use_count() == 1 ? std::exchange(image_, nullptr) : nullptr;
}

void Region::put_image(std::shared_ptr<HostMemory> image) {
  const std::lock_guard lock(image_mutex_);
  image_ = std::move(image);
}

void ModelMemory::require_unparked(const char* what) const {
  for (const RegionPtr& region : regions_) {
    if (!region->parked()) continue;
    throw UsageError(std::string(what) + ": an image is parked, bring it back first");
  }
}

// An image that has grown is digested by the pieces that it will have once it is in one.
PieceDigests ModelMemory::digests_in_one(const Region& region) const {
  PieceDigests digests = region.digests_;
  if (verify_ == Verify::off) return digests;
  const std::vector<Run> pieces = in_pieces(region.saved_.runs(), piece_bytes_);
  digests.complete(pieces, region.image_->data());
  // Not before: whatever changes meanwhile is in the new digests or is found here.
  for (const Run& piece : pieces_of(region, region.saved_)) {
    if (std::find(pieces.begin(), pieces.end(), piece) != pieces.end()) continue;
    if (digest(region.image_->data() + piece.begin, piece.bytes()) != region.digests_.of(piece)) {
      throw damaged(region, piece, "");
    }
  }
  return digests;
}

void ModelMemory::park(const std::vector<RegionPtr>& regions,
                       const std::vector<std::uint64_t>& changes) {
  std::vector<std::shared_ptr<HostMemory>> images;  // which go after the lock
  std::lock_guard lock(mutex_);
  require_cold("images are parked while their model is out");
  if (changes.size() != regions.size()) throw UsageError("each region is parked as it was once");
  std::vector<PieceDigests> digests;
  for (std::size_t i = 0; i < regions.size(); ++i) {
    const Region& region = *regions[i];
    require_own(region);
    if (!region.image_) throw UsageError("a region without an image cannot be parked");
    if (region.image_changes() != changes[i]) throw UsageError("an image has changed since");
    digests.push_back(digests_in_one(region));
  }
  images.reserve(regions.size());
  for (std::size_t i = 0; i < regions.size(); ++i) {
    images.push_back(regions[i]->take_image_unshared());
    if (images.back()) continue;
    for (std::size_t j = 0; j < i; ++j) regions[j]->put_image(std::move(images[j]));
    throw UsageError("somebody looks at an image, which cannot be parked");
  }
  for (std::size_t i = 0; i < regions.size(); ++i) {
    regions[i]->digests_ = std::move(digests[i]);
    regions[i]->parked_ = true;
  }
}

std::shared_ptr<HostMemory> ModelMemory::make_image(const Region& region, int fd) const {
  std::lock_guard lock(mutex_);
  require_own(region);
  if (!region.parked()) throw UsageError("only a parked region needs another image");
  auto image = std::make_shared<HostMemory>(driver_, fd, region.bytes(), region.capacity_bytes());
  image->report_to(gone_image_bytes_);
  return image;
}

void ModelMemory::unpark(const std::vector<RegionPtr>& regions,
                         const std::vector<std::shared_ptr<HostMemory>>& images) {
  std::lock_guard lock(mutex_);
  require(State::out, "images come back while their model is out");
  if (images.size() != regions.size()) throw UsageError("each region comes back with one image");
  for (std::size_t i = 0; i < regions.size(); ++i) {
    require_own(*regions[i]);
    if (!regions[i]->parked()) throw UsageError("only a parked region can be given an image");
    // Of a region that was not there to be resized meanwhile.
    if (!images[i] || images[i]->missing_bytes(regions[i]->bytes()) > 0) {
      throw UsageError("an image that is shorter than its region cannot come back");
    }
  }
  for (std::size_t i = 0; i < regions.size(); ++i) {
    regions[i]->put_image(images[i]);
    regions[i]->parked_ = false;
  }
}

}  // namespace gpupool

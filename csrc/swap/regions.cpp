#include <algorithm>
#include <utility>

#include "swap/swap.h"

namespace gpupool {

Region::Region(Tag tag, std::size_t bytes, std::size_t page_bytes, ReservationPtr reservation,
               std::shared_ptr<HostMemory> image)
    : tag_(tag),
      bytes_(bytes),
      page_bytes_(page_bytes),
      reservation_(std::move(reservation)),
      image_(std::move(image)) {
  // The image of fresh weights is empty: their first swap-out saves all of them.
  if (tag == Tag::weights) written_.add({0, bytes});
}

std::size_t Region::span_bytes() const noexcept {
  return (bytes_ + page_bytes_ - 1) / page_bytes_ * page_bytes_;
}

std::size_t Region::pages_mapped() const noexcept {
  return mapping_ ? mapping_->pages().size() : 0;
}

std::shared_ptr<HostMemory> Region::share_image() const {
  const std::lock_guard lock(image_mutex_);
  return image_;
}

std::shared_ptr<HostMemory> Region::take_image() {
  const std::lock_guard lock(image_mutex_);
  return std::exchange(image_, nullptr);
}

std::byte* Region::image() const {
  const auto image = share_image();
  return image ? image->data() : nullptr;
}

std::size_t Region::image_bytes() const {
  const auto image = share_image();
  return image ? image->bytes() : 0;
}

RegionPtr ModelMemory::add_region(Tag tag, std::size_t bytes, std::optional<int> image_fd,
                                  std::size_t capacity_bytes) {
  std::lock_guard lock(mutex_);
  require_cold("a region can be added only while its model is out");
  if (bytes == 0) throw UsageError("a region must have at least one byte");
  if (!image_fd && tag != Tag::kv_cache && tag != Tag::workspace) {
    throw UsageError("only a KV cache or a workspace can do without an image");
  }
  const std::size_t capacity = std::max(bytes, capacity_bytes);
  const std::size_t span = (capacity + page_bytes_ - 1) / page_bytes_ * page_bytes_;
  auto reservation = std::make_shared<const Reservation>(driver_, span);
  std::shared_ptr<HostMemory> image;
  if (tag != Tag::workspace && image_fd) {
    image = std::make_shared<HostMemory>(driver_, *image_fd, bytes, span);
  }
  regions_.push_back(RegionPtr(new Region(tag, bytes, page_bytes_, std::move(reservation), image)));
  // Not before: of memory that never was an image the error tells.
  if (image) image->report_to(gone_image_bytes_);
  return regions_.back();
}

void ModelMemory::remove_region(const Region& region) {
  RegionPtr gone;  // what these hold goes after the lock
  std::shared_ptr<HostMemory> image;
  std::lock_guard lock(mutex_);
  require_cold("a region can be removed only while its model is out");
  require_own(region);
  if (!region.arena_.expired()) throw UsageError("an allocator still has the region");
  const auto at = std::find_if(regions_.begin(), regions_.end(),
                               [&](const RegionPtr& mine) { return mine.get() == &region; });
  gone = std::move(*at);
  regions_.erase(at);
  image = gone->take_image();
}

void ModelMemory::close() {
  std::vector<std::shared_ptr<HostMemory>> images;  // which go after the lock
  std::unique_ptr<HostMemory> sums;
  std::lock_guard lock(mutex_);
  if (state_ == State::closed) return;
  require_cold("only a model that is out can be closed");
  images.reserve(regions_.size());
  for (const RegionPtr& region : regions_) images.push_back(region->take_image());
  sums = std::move(sums_);
  state_ = State::closed;
}

std::size_t ModelMemory::take_gone_image_bytes() noexcept { return gone_image_bytes_->exchange(0); }

}  // namespace gpupool

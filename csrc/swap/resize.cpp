#include <algorithm>
#include <string>
#include <utility>

#include "digest/digest.h"
#include "swap/swap.h"

namespace gpupool {

// A region of another model is guarded by another lock.
void ModelMemory::require_own(const Region& region) const {
  const bool found = std::any_of(regions_.begin(), regions_.end(),
                                 [&](const RegionPtr& mine) { return mine.get() == &region; });
  if (!found) throw UsageError("the region belongs to another model, or was removed");
}

void ModelMemory::check_runs(const Region& region, const std::vector<Run>& runs) const {
  for (const Run& run : runs) {
    if (run.begin > run.end || run.end > region.bytes()) {
      throw UsageError("bytes " + std::to_string(run.begin) + " to " + std::to_string(run.end) +
                       " are not in a region of " + std::to_string(region.bytes()) + " bytes");
    }
  }
}

void ModelMemory::check_pages(const std::vector<PagePtr>& pages, std::size_t count,
                              std::size_t clean) const {
  const bool right_size = std::all_of(pages.begin(), pages.end(), [&](const PagePtr& page) {
    return page != nullptr && page->bytes() == page_bytes_;
  });
  if (pages.size() != count || clean > count || !right_size) {
    throw UsageError("this needs " + std::to_string(count) + " pages of " +
                     std::to_string(page_bytes_) + " bytes, got " + std::to_string(pages.size()));
  }
  if (pages.empty()) return;
  std::vector<const Page*> distinct;
  distinct.reserve(count);
  for (const PagePtr& page : pages) {
    if (page->driver() != driver_) throw UsageError("a page is of another device");
    distinct.push_back(page.get());
  }
  std::sort(distinct.begin(), distinct.end());
  bool twice = std::adjacent_find(distinct.begin(), distinct.end()) != distinct.end();
  for (const RegionPtr& region : regions_) {
    if (!region->mapping_) continue;
    for (const PagePtr& page : region->mapping_->pages()) {
      twice = twice || std::binary_search(distinct.begin(), distinct.end(), page.get());
    }
  }
  if (twice) throw UsageError("a page is named twice, or is behind this model already");
}

std::size_t ModelMemory::missing_image_bytes(const Region& region, std::size_t bytes) const {
  std::lock_guard lock(mutex_);
  require_own(region);
  return region.image_ ? region.image_->missing_bytes(bytes) : 0;
}

std::vector<PagePtr> ModelMemory::mapped_pages(const Region& region) const {
  std::lock_guard lock(mutex_);
  require_own(region);
  return region.mapping_ ? region.mapping_->pages() : std::vector<PagePtr>();
}

std::shared_ptr<Arena> ModelMemory::share_out(Region& region, std::size_t alignment) {
  std::lock_guard lock(mutex_);
  require_own(region);
  if (!region.arena_.expired()) throw UsageError("the region is shared out by another allocator");
  auto arena = std::make_shared<Arena>(region.address(), region.bytes(), alignment);
  region.arena_ = arena;
  return arena;
}

std::vector<PagePtr> ModelMemory::resize(Region& region, std::size_t bytes,
                                         const std::vector<PagePtr>& pages, std::size_t clean,
                                         int image_fd) {
  std::lock_guard lock(mutex_);
  require_own(region);
  require_unsealed(region);
  if (state_ != State::out && state_ != State::resident) {
    require(State::resident, "a region cannot be resized");
  }
  if (state_ == State::out) require_cold("a region cannot be resized");
  if (bytes == 0 || bytes > region.capacity_bytes()) {
    throw UsageError("a region of at most " + std::to_string(region.capacity_bytes()) +
                     " bytes cannot have " + std::to_string(bytes));
  }
  if (region.parked()) throw UsageError("a parked region cannot be resized: bring it back first");
  const std::size_t before = region.bytes();
  const std::size_t span = (bytes + page_bytes_ - 1) / page_bytes_ * page_bytes_;
  const bool more_pages = state_ == State::resident && span > region.span_bytes();
  check_pages(pages, more_pages ? (span - region.span_bytes()) / page_bytes_ : 0, clean);

  // Everything that may fail comes before the first change that shows.
  RunSet saved = region.saved_, written = region.written_;
  if (bytes < before) {
    saved.remove({bytes, before});
    written.remove({bytes, before});
  } else if (region.tag_ == Tag::weights) {
    written.add({before, bytes});
  }
  // The digest of a piece that is cut in two is lost: what the image has of it must be what was
  // saved, or is saved anew. It has none if a swap-out that failed has begun to save it.
  for (const Run& piece : pieces_of(region, region.saved_)) {
    if (verify_ == Verify::off || piece.begin >= bytes || piece.end <= bytes) continue;
    if (state_ == State::resident) {
      written.add({piece.begin, bytes});
    } else if (digest(region.image_->data() + piece.begin, piece.bytes()) !=
               region.digests_.of(piece)) {
      throw damaged(region, piece, "");
    }
  }
  if (region.image_) region.image_->grow(image_fd, bytes);
  PieceDigests digests = region.digests_;
  if (verify_ != Verify::off && region.image_) {
    const std::vector<Run> pieces = pieces_of(region, saved);
    if (state_ == State::resident) {
      digests.keep(pieces);
    } else {
      digests.complete(pieces, region.image_->data());
    }
  }
  const std::shared_ptr<Arena> arena = region.arena_.lock();
  if (arena) arena->prepare_limit();
  // What goes is taken from the arena first, what comes is given to it last.
  if (arena && bytes < before) arena->set_limit(bytes);
  std::vector<PagePtr> gone;
  try {
    if (state_ == State::resident) {
      if (bytes < before) {
        gone = shrink_resident(region, bytes);
      } else {
        grow_resident(region, bytes, pages, clean);
      }
    }
  } catch (...) {
    if (arena) arena->set_limit(before);
    throw;
  }
  ++region.image_changes_;
  region.saved_ = std::move(saved);
  region.written_ = std::move(written);
  region.digests_ = std::move(digests);
  region.bytes_ = bytes;
  if (arena) arena->set_limit(bytes);
  return gone;
}

std::vector<PagePtr> ModelMemory::shrink_resident(Region& region, std::size_t bytes) {
  // Kernels and copies of anybody in this process may still touch what goes.
  GPUPOOL_CALL(driver_, context_synchronize);
  return region.mapping_->shrink((bytes + page_bytes_ - 1) / page_bytes_);
}

void ModelMemory::grow_resident(Region& region, std::size_t bytes,
                                const std::vector<PagePtr>& pages, std::size_t clean) {
  const std::size_t before = region.bytes();
  const std::size_t span_before = region.span_bytes();
  if (region.mapping_->pages().size() > region.pages()) {
    throw UsageError("pages of a failed resize are still mapped: swap the model out first");
  }
  region.mapping_->extend(pages);
  try {
    // Up to the end of the page it had, and then every new page that is not taken for clean.
    const DevicePtr base = region.address();
    const std::size_t known = takes_clean(region) ? clean : 0;
    const std::size_t dirty_from = span_before + known * page_bytes_;
    const std::size_t dirty_bytes = (pages.size() - known) * page_bytes_;
    in_.fill(base + before, 0, std::min(bytes, span_before) - before);
    in_.fill(base + dirty_from, 0, dirty_bytes);
    in_.synchronize();
  } catch (...) {
    try {
      in_.synchronize();
      region.mapping_->shrink(span_before / page_bytes_);
    } catch (...) {
      // Reported by the first error already; the pages stay behind the region.
    }
    throw;
  }
}

}  // namespace gpupool

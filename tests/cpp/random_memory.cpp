// A model that comes, goes and changes size in a random world, and pages that are scrubbed.
#include "random_world.h"

namespace gpupool {

bool RandomWorld::swap() {
  if (model_->resident()) {
    if (below(4) != 0) {
      model_->read();
      model_->write();
      return true;
    }
    const std::size_t keep = below(3) == 0 ? below(SteppedModel::pages) : 0;
    model_->swap_out(keep, below(3) == 0);
    follow_model();
    return true;
  }
  const std::size_t warm = model_->memory().warm_pages();
  const std::size_t cold = model_->memory().warmable_pages() - warm;
  const std::size_t needed = model_->memory().pages_needed() - warm;
  if (free_pages() < needed) {
    if (warm == 0) return false;
    model_->cool(1 + below(warm));
    follow_model();
    return true;
  }
  try {
    if (below(3) == 0) {
      model_->warm(below(cold + 1));
    } else {
      model_->swap_in();
    }
  } catch (...) {
    forget_free_pages();
    throw;
  }
  follow_model();
  return true;
}

// What failed may have written to any page that it had for a while.
void RandomWorld::forget_free_pages() {
  for (PageId id = 0; id < pages_.size(); ++id) {
    if (pages_[id].owner == 0 && !is_clean(id)) pages_[id].content.kind = Content::Kind::unknown;
  }
}

bool RandomWorld::resize() {
  const std::size_t bytes = 8 * (1 + below(6 * small_page / 8));
  if (model_->resident() && free_pages() < 6) return false;
  if (const std::size_t warm = model_->memory().warm_pages(); warm > 0) model_->cool(warm);
  try {
    model_->resize_kv(bytes);
  } catch (...) {
    follow_model();
    forget_free_pages();
    throw;
  }
  follow_model();
  return true;
}

bool RandomWorld::scrub(Owner& owner) {
  std::vector<PageId> mine;
  if (below(2) == 0) {
    mine = unused(owner);
    if (mine.empty()) return false;
  }
  try {
    if (mine.empty()) {
      scrubber_->scrub_free();
    } else {
      scrubber_->scrub_owned(owner.id, mine);
      for (const PageId id : mine) CHECK(is_clean(id));
    }
  } catch (...) {
    scrub_failed_ = true;
    for (PlainPage& page : pages_) {  // any of them may be half zeroed
      const bool scrubbed = page.owner == 0 || (page.owner == owner.id && !page.in_use);
      if (scrubbed) page.content.kind = Content::Kind::unknown;
    }
    throw;
  }
  for (const PageId id : mine) pages_[id].content = {Content::Kind::filled, 0};
  note_clean();
  return true;
}

// The next call of a scrubber gives back what an earlier one had to withhold.
void RandomWorld::settle_scrubber() {
  scrub_failed_ = false;
  scrubber_->scrub_free();
  CHECK_EQ(machine_.pool.statistics().withheld, 0);
  for (const Owner& owner : owners_) {
    const std::vector<PageId> kept = machine_.pool.owned(owner.id);
    for (PageId id = 0; id < pages_.size(); ++id) {
      if (pages_[id].owner != owner.id || std::count(kept.begin(), kept.end(), id) > 0) continue;
      CHECK(!pages_[id].in_use);
      pages_[id] = {0, false, {Content::Kind::unknown, 0}};
    }
  }
  note_clean();
}

void RandomWorld::note_clean() {
  for (PageId id = 0; id < pages_.size(); ++id) {
    if (pages_[id].owner == 0 && is_clean(id)) pages_[id].content = {Content::Kind::filled, 0};
  }
}

// Which pages the model has now; what is in them is its own affair.
void RandomWorld::follow_model() {
  const std::vector<PageId> held = machine_.pool.owned(model_owner);
  for (PageId id = 0; id < pages_.size(); ++id) {
    const bool holds = std::count(held.begin(), held.end(), id) > 0;
    if (holds == (pages_[id].owner == model_owner)) continue;
    if (holds) CHECK_EQ(pages_[id].owner, 0);
    pages_[id] = {holds ? model_owner : 0, false, {Content::Kind::unknown, 0}};
  }
}

bool RandomWorld::is_clean(PageId id) const {
  return id < machine_.pool.created_pages() && machine_.pool.is_clean(id);
}

}  // namespace gpupool

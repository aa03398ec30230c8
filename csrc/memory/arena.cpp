#include "memory/arena.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <sstream>
#include <string>

namespace gpupool {
namespace {

constexpr std::size_t large = std::size_t{2} << 20;

std::string hexadecimal(DevicePtr address) {
  std::ostringstream out;
  out << "0x" << std::hex << address;
  return out.str();
}

}  // namespace

Arena::Arena(DevicePtr base, std::size_t limit_bytes, std::size_t alignment)
    : base_(base), alignment_(alignment) {
  if (!std::has_single_bit(alignment) || base % alignment != 0) {
    throw UsageError("address " + hexadecimal(base) + " and alignment " +
                     std::to_string(alignment) +
                     ": the alignment must be a power of two that divides the address");
  }
  set_limit(limit_bytes);
}

// A node of a set is only to be had from a set.
Arena::Sizes::node_type Arena::new_size() {
  Sizes made;
  return made.extract(made.emplace(0, 0).first);
}

Arena::Blocks::node_type Arena::new_block() {
  Blocks made;
  made[0].size = new_size();
  return made.extract(made.begin());
}

// `node` is of a block in use; the one it becomes is in use too.
Arena::Blocks::iterator Arena::insert(Blocks::node_type node, DevicePtr address,
                                      std::size_t bytes) noexcept {
  node.key() = address;
  node.mapped().bytes = bytes;
  return blocks_.insert(std::move(node)).position;
}

void Arena::set_free(Blocks::iterator block) noexcept {
  block->second.size.value() = {block->second.bytes, block->first};
  sizes_.insert(std::move(block->second.size));
}

void Arena::set_used(Blocks::iterator block) noexcept {
  block->second.size = sizes_.extract({block->second.bytes, block->first});
}

std::optional<DevicePtr> Arena::allocate(std::size_t bytes) {
  if (bytes == 0) throw UsageError("a block must have at least one byte");
  const std::lock_guard lock(mutex_);
  if (bytes > usable_) {
    ++refused_;
    return std::nullopt;
  }
  const std::size_t size = (bytes + alignment_ - 1) / alignment_ * alignment_;
  const auto fit = sizes_.lower_bound({size, 0});
  if (fit == sizes_.end()) {
    ++refused_;
    return std::nullopt;
  }
  const auto [whole, start] = *fit;
  const std::size_t rest = whole - size;
  // Before anything changes.
  Blocks::node_type node = rest > 0 ? new_block() : Blocks::node_type();
  const bool at_end = size >= large && start % large != 0 && (start + rest) % large == 0;
  auto taken = blocks_.find(start);
  set_used(taken);
  if (rest > 0) {
    const std::size_t first = at_end ? rest : size;
    taken->second.bytes = first;
    const auto second = insert(std::move(node), start + first, whole - first);
    set_free(at_end ? taken : second);
    if (at_end) taken = second;
  }
  ++live_blocks_;
  live_bytes_ += size;
  peak_bytes_ = std::max(peak_bytes_, live_bytes_);
  return taken->first;
}

void Arena::free(DevicePtr address) {
  const std::lock_guard lock(mutex_);
  auto block = blocks_.find(address);
  if (block == blocks_.end() || is_free(block->second)) {
    throw UsageError("no block in use begins at " + hexadecimal(address) +
                     ": it was freed already, or is not of this region");
  }
  --live_blocks_;
  live_bytes_ -= block->second.bytes;
  if (const auto next = std::next(block); next != blocks_.end() && is_free(next->second)) {
    set_used(next);
    block->second.bytes += next->second.bytes;
    blocks_.erase(next);
  }
  if (block != blocks_.begin() && is_free(std::prev(block)->second)) {
    const auto previous = std::prev(block);
    set_used(previous);
    previous->second.bytes += block->second.bytes;
    blocks_.erase(block);
    block = previous;
  }
  set_free(block);
}

void Arena::set_limit(std::size_t limit_bytes) {
  const std::lock_guard lock(mutex_);
  const std::size_t usable = limit_bytes / alignment_ * alignment_;
  if (usable > std::numeric_limits<DevicePtr>::max() - base_) {
    throw UsageError("a range of " + std::to_string(limit_bytes) + " bytes from " +
                     hexadecimal(base_) + " wraps around");
  }
  const bool free_tail = !blocks_.empty() && is_free(std::prev(blocks_.end())->second);
  if (usable > usable_) {
    if (free_tail) {
      const auto tail = std::prev(blocks_.end());
      set_used(tail);
      tail->second.bytes += usable - usable_;
      set_free(tail);
    } else {
      Blocks::node_type node = spare_.empty() ? new_block() : std::move(spare_);
      set_free(insert(std::move(node), end(), usable - usable_));
    }
  } else if (usable < usable_) {
    const auto tail = std::prev(blocks_.end());
    if (!free_tail || tail->first > base_ + usable) {
      throw UsageError("there are blocks in use beyond the first " + std::to_string(limit_bytes) +
                       " bytes, up to " +
                       std::to_string((free_tail ? tail->first : end()) - base_));
    }
    set_used(tail);
    tail->second.bytes -= usable_ - usable;
    if (tail->second.bytes > 0) {
      set_free(tail);
    } else {
      spare_ = blocks_.extract(tail);
    }
  }
  usable_ = usable;
  limit_ = limit_bytes;
}

void Arena::prepare_limit() {
  const std::lock_guard lock(mutex_);
  if (spare_.empty()) spare_ = new_block();
}

ArenaStatistics Arena::statistics() const {
  const std::lock_guard lock(mutex_);
  ArenaStatistics all;
  all.limit_bytes = limit_;
  all.live_blocks = live_blocks_;
  all.live_bytes = live_bytes_;
  all.peak_bytes = peak_bytes_;
  all.free_blocks = sizes_.size();
  all.largest_free_bytes = sizes_.empty() ? 0 : sizes_.rbegin()->first;
  all.refused = refused_;
  return all;
}

std::size_t Arena::live_blocks() const {
  const std::lock_guard lock(mutex_);
  return live_blocks_;
}

}  // namespace gpupool

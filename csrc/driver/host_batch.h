// What the host driver has to know of a batch of copies.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

#include "driver/driver.h"

namespace gpupool::host {

// Whether any two of the destinations share a byte: what is there afterwards is then up to chance.
template <typename Destination>
bool overlap(const Destination* destinations, const std::size_t* sizes, std::size_t count) {
  std::vector<std::pair<std::uint64_t, std::size_t>> all;  // (address, bytes)
  all.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    all.emplace_back(reinterpret_cast<std::uint64_t>(destinations[i]), sizes[i]);
  }
  std::sort(all.begin(), all.end());
  return std::adjacent_find(all.begin(), all.end(), [](const auto& left, const auto& right) {
           return right.first - left.first < left.second;
         }) != all.end();
}

// The copies of a batch in the order in which they are to be made; Memory is a pointer, to const
// where the host is the source.
template <typename Memory>
class Batch {
 public:
  Batch(const DevicePtr* devices, const Memory* memories, const std::size_t* sizes,
        const std::vector<std::size_t>& order) {
    copies_.reserve(order.size());
    for (const std::size_t i : order) {
      copies_.push_back({devices[i], memories[i], bytes_});
      bytes_ += sizes[i];
    }
  }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

  // Calls copy(device, memory, bytes) for what of each copy is in [begin, end) of the bytes of
  // them all; stops at the first that is no success.
  template <typename Copy>
  Status each(std::size_t begin, std::size_t end, Copy copy) const {
    auto it =
        std::prev(std::upper_bound(copies_.begin(), copies_.end(), begin,
                                   [](std::size_t at, const One& one) { return at < one.begin; }));
    Status status = Status::success;
    while (status == Status::success && begin < end) {
      const auto next = std::next(it);
      const std::size_t n = std::min(end, next == copies_.end() ? bytes_ : next->begin) - begin;
      const std::size_t offset = begin - it->begin;
      status = copy(it->device + offset, moved(it->memory, offset), n);
      begin += n;
      it = next;
    }
    return status;
  }

 private:
  struct One {
    DevicePtr device;
    Memory memory;
    std::size_t begin;  // of its bytes in those of the batch
  };
  static const void* moved(const void* memory, std::size_t offset) {
    return static_cast<const char*>(memory) + offset;
  }
  static void* moved(void* memory, std::size_t offset) {
    return static_cast<char*>(memory) + offset;
  }

  std::vector<One> copies_;
  std::size_t bytes_ = 0;
};

}  // namespace gpupool::host

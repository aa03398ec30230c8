#include "transfer/lanes.h"

#include <exception>
#include <utility>

namespace gpupool {

CopyLanes::CopyLanes(const DriverPtr& driver, std::size_t chunk_bytes, std::size_t count) {
  if (count == 0) throw UsageError("copies need at least one stream");
  for (std::size_t i = 0; i < count; ++i) {
    streams_.push_back(std::make_unique<CopyStream>(driver, chunk_bytes));
  }
}

void CopyLanes::to_device(DevicePtr destination, const std::byte* source, std::size_t bytes,
                          std::uint64_t* sums) {
  const std::size_t lane = next_++ % streams_.size();
  CopyStream& stream = *streams_[lane];
  Window::Events* const events = window_ == nullptr ? nullptr : window_->events_[lane].get();
  Event* before_last = nullptr;
  if (events != nullptr) {
    before_last = events->turn ? &events->other : &events->one;
    before_last->wait();
    if (window_->stop_.stop_requested()) throw Cancelled("the copies were stopped on request");
  }
  if (sums == nullptr) {
    stream.to_device(destination, source, bytes);
  } else {
    stream.to_device_digest(destination, source, bytes, sums);
  }
  if (events != nullptr) {
    stream.record(*before_last);  // which is now that of the last
    events->turn = !events->turn;
  }
}

void CopyLanes::digest(DevicePtr memory, std::size_t bytes, std::uint64_t* sums) {
  streams_[next_++ % streams_.size()]->digest(memory, bytes, sums);
}

void CopyLanes::fill(DevicePtr destination, std::uint8_t value, std::size_t bytes) {
  streams_[next_++ % streams_.size()]->fill(destination, value, bytes);
}

void CopyLanes::synchronize() {
  std::exception_ptr first;
  for (const auto& stream : streams_) {
    try {
      stream->synchronize();
    } catch (...) {
      if (!first) first = std::current_exception();
    }
  }
  if (first) std::rethrow_exception(first);
}

bool CopyLanes::ended() noexcept {
  bool all = true;
  for (const auto& stream : streams_) {
    const bool over = stream->ended();
    all = all && over;
  }
  return all;
}

CopyLanes::Window::Window(const DriverPtr& driver, CopyLanes& lanes, std::stop_token stop)
    : lanes_(lanes), stop_(std::move(stop)) {
  for (std::size_t i = 0; i < lanes.count(); ++i) {
    events_.push_back(std::make_unique<Events>(driver));
  }
  lanes.window_ = this;
}

}  // namespace gpupool

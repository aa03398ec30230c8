#include "transfer/transfer.h"

#include <algorithm>
#include <utility>

namespace gpupool {

Event::Event(DriverPtr driver) : driver_(std::move(driver)) {
  GPUPOOL_CALL(driver_, event_create, &event_);
}

Event::~Event() { static_cast<void>(driver_->event_destroy(event_)); }

void Event::wait() const { GPUPOOL_CALL(driver_, event_synchronize, event_); }

bool Event::done() const {
  const Status status = driver_->event_query(event_);
  if (status == Status::not_ready) return false;
  check(*driver_, "event_query", status);
  return true;
}

CopyStream::CopyStream(DriverPtr driver, std::size_t chunk_bytes)
    : driver_(std::move(driver)), chunk_bytes_(chunk_bytes) {
  if (chunk_bytes_ == 0) throw UsageError("a copy chunk must have at least one byte");
  GPUPOOL_CALL(driver_, stream_create, &stream_);
}

CopyStream::~CopyStream() {
  static_cast<void>(driver_->stream_synchronize(stream_));
  static_cast<void>(driver_->stream_destroy(stream_));
}

void CopyStream::to_device(DevicePtr destination, const std::byte* source, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += chunk_bytes_) {
    const std::size_t n = std::min(chunk_bytes_, bytes - at);
    GPUPOOL_CALL(driver_, copy_to_device, destination + at, source + at, n, stream_);
  }
}

void CopyStream::to_host(std::byte* destination, DevicePtr source, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += chunk_bytes_) {
    const std::size_t n = std::min(chunk_bytes_, bytes - at);
    GPUPOOL_CALL(driver_, copy_to_host, destination + at, source + at, n, stream_);
  }
}

void CopyStream::fill(DevicePtr destination, std::uint8_t value, std::size_t bytes) {
  if (bytes == 0) return;
  GPUPOOL_CALL(driver_, fill, destination, value, bytes, stream_);
}

void CopyStream::record(const Event& event) {
  GPUPOOL_CALL(driver_, event_record, event.handle(), stream_);
}

void CopyStream::wait_for(const Event& event) {
  GPUPOOL_CALL(driver_, stream_wait_event, stream_, event.handle());
}

CopyWindow::CopyWindow(DriverPtr driver, CopyStream& stream, std::stop_token stop)
    : stream_(stream), stop_(std::move(stop)), events_{Event(driver), Event(driver)} {}

void CopyWindow::to_device(DevicePtr destination, const std::byte* source, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += stream_.chunk_bytes()) {
    const Event& before_last = events_[turn_];
    before_last.wait();
    if (stop_.stop_requested()) throw Cancelled("the copies were stopped on request");
    stream_.to_device(destination + at, source + at, std::min(stream_.chunk_bytes(), bytes - at));
    stream_.record(before_last);  // which is now that of the last
    turn_ = 1 - turn_;
  }
}

bool CopyStream::ended() noexcept {
  return driver_->stream_synchronize(stream_) == Status::success ||
         driver_->context_synchronize() == Status::success;
}

void CopyStream::synchronize() { GPUPOOL_CALL(driver_, stream_synchronize, stream_); }

}  // namespace gpupool

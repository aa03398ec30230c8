#include "transfer/transfer.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace gpupool {

bool device_ended(Driver& driver) noexcept {
  return driver.context_synchronize() == Status::success ||
         driver.context_synchronize() == Status::success;
}

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

namespace {

// Hands the spans to `call` as three arrays, whole where they fit into one call and cut into chunks
// where not even an empty one would hold them.
class Batches {
 public:
  Batches(std::size_t spans, std::size_t chunk_bytes) : chunk_bytes_(chunk_bytes) {
    const std::size_t most = std::min(spans, CopyStream::batch_spans_max);
    device_.reserve(most);
    host_.reserve(most);
    sizes_.reserve(most);
  }
  template <typename Call>
  void run(std::span<const CopySpan> batch, Call call) {
    for (const CopySpan& span : batch) {
      for (std::size_t at = 0; at < span.bytes;) {
        const std::size_t n = std::min(chunk_bytes_, span.bytes - at);
        if (sizes_.size() == CopyStream::batch_spans_max || n > chunk_bytes_ - bytes_) flush(call);
        device_.push_back(span.device + at);
        host_.push_back(span.host + at);
        sizes_.push_back(n);
        bytes_ += n;
        at += n;
      }
    }
    if (!sizes_.empty()) flush(call);
  }

 private:
  template <typename Call>
  void flush(Call call) {
    call(device_.data(), host_.data(), sizes_.data(), sizes_.size());
    device_.clear();
    host_.clear();
    sizes_.clear();
    bytes_ = 0;
  }

  const std::size_t chunk_bytes_;
  std::vector<DevicePtr> device_;
  std::vector<void*> host_;
  std::vector<std::size_t> sizes_;
  std::size_t bytes_ = 0;
};

}  // namespace

void CopyStream::to_device(std::span<const CopySpan> batch) {
  Batches(batch.size(), chunk_bytes_)
      .run(batch, [&](const DevicePtr* device, void* const* host, const std::size_t* sizes,
                      std::size_t count) {
        GPUPOOL_CALL(driver_, copy_batch_to_device, device, host, sizes, count, stream_);
      });
}

void CopyStream::to_host(std::span<const CopySpan> batch) {
  Batches(batch.size(), chunk_bytes_)
      .run(batch, [&](const DevicePtr* device, void* const* host, const std::size_t* sizes,
                      std::size_t count) {
        GPUPOOL_CALL(driver_, copy_batch_to_host, host, device, sizes, count, stream_);
      });
}

void CopyStream::to_device_digest(DevicePtr destination, const std::byte* source, std::size_t bytes,
                                  std::uint64_t* sums) {
  GPUPOOL_CALL(driver_, copy_to_device_digest, destination, source, bytes, sums, stream_);
}

void CopyStream::digest(DevicePtr memory, std::size_t bytes, std::uint64_t* sums) {
  GPUPOOL_CALL(driver_, digest, memory, bytes, sums, stream_);
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

bool CopyStream::ended() noexcept {
  return driver_->stream_synchronize(stream_) == Status::success ||
         driver_->context_synchronize() == Status::success;
}

void CopyStream::synchronize() { GPUPOOL_CALL(driver_, stream_synchronize, stream_); }

}  // namespace gpupool

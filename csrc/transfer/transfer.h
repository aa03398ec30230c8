// Streams, events and the copies that run on them.
#pragma once

#include <span>
#include <stdexcept>

#include "driver/driver.h"

namespace gpupool {

// For who cannot wait again later: waits for all work of the device, twice if it does not answer.
// Whether nothing is in flight any more.
[[nodiscard]] bool device_ended(Driver& driver) noexcept;

// A point in a stream's work.
class Event {
 public:
  explicit Event(DriverPtr driver);  // throws DriverError
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  [[nodiscard]] EventHandle handle() const noexcept { return event_; }
  void wait() const;                // blocks the thread; throws DriverError
  [[nodiscard]] bool done() const;  // throws DriverError

 private:
  DriverPtr driver_;
  EventHandle event_ = nullptr;
};

// A run of bytes on the device and its place on the host.
struct CopySpan {
  DevicePtr device;
  std::byte* host;  // to_device() reads it alone
  std::size_t bytes;
};

// A stream that copies between host and device in order, in chunks.
class CopyStream {
 public:
  static constexpr std::size_t batch_spans_max = 1024;

  // Throws DriverError.
  CopyStream(DriverPtr driver, std::size_t chunk_bytes);
  // Waits for what is in flight.
  ~CopyStream();
  CopyStream(const CopyStream&) = delete;
  CopyStream& operator=(const CopyStream&) = delete;

  // All asynchronous; throw DriverError, after which some chunks may still be in flight until
  // synchronize().
  void to_device(DevicePtr destination, const std::byte* source, std::size_t bytes);
  void to_host(std::byte* destination, DevicePtr source, std::size_t bytes);
  // All spans of a batch, in calls for at most batch_spans_max of them and chunk_bytes of bytes;
  // those of no bytes are left out. The spans are copied in no order, so that what is written must
  // not overlap: a driver that sees it refuses, on a GPU anything may come of it. The status of the
  // error is not_supported where the driver has no such call; nothing is in flight then.
  void to_device(std::span<const CopySpan> batch);
  void to_host(std::span<const CopySpan> batch);
  // At most a chunk: what Driver::digest and copy_to_device_digest say of their sums holds here.
  void to_device_digest(DevicePtr destination, const std::byte* source, std::size_t bytes,
                        std::uint64_t* sums);
  void digest(DevicePtr memory, std::size_t bytes, std::uint64_t* sums);
  void fill(DevicePtr destination, std::uint8_t value, std::size_t bytes);  // none for no bytes
  void record(const Event& event);
  void wait_for(const Event& event);
  void synchronize();  // throws DriverError
  // For who cannot wait again later: waits for the stream or, if it does not answer, once for the
  // whole device. Whether nothing of it is in flight any more.
  [[nodiscard]] bool ended() noexcept;
  [[nodiscard]] StreamHandle handle() const noexcept { return stream_; }
  [[nodiscard]] std::size_t chunk_bytes() const noexcept { return chunk_bytes_; }

 private:
  DriverPtr driver_;
  std::size_t chunk_bytes_;
  StreamHandle stream_ = nullptr;
};

// Copies were stopped on request.
class Cancelled final : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace gpupool

// Streams, events and the copies that run on them.
#pragma once

#include "driver/driver.h"

namespace gpupool {

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

// A stream that copies between host and device in order, in chunks.
class CopyStream {
 public:
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
  void fill(DevicePtr destination, std::uint8_t value, std::size_t bytes);
  void record(const Event& event);
  void wait_for(const Event& event);
  void synchronize();  // throws DriverError

 private:
  DriverPtr driver_;
  std::size_t chunk_bytes_;
  StreamHandle stream_ = nullptr;
};

}  // namespace gpupool

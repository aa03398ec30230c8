// A bench with two streams, events between them, and room for slow work.
#pragma once

#include "bench.h"

namespace gpupool {

struct Two : Bench {
  Two() {
    CHECK_OK((*this)->stream_create(&other));
    CHECK_OK((*this)->event_create(&event));
    CHECK_OK((*this)->event_create(&answer));
    base = mapped(9);
  }
  ~Two() {
    static_cast<void>((*this)->stream_destroy(other));
    static_cast<void>((*this)->event_destroy(event));
    static_cast<void>((*this)->event_destroy(answer));
  }
  // Enough to keep a stream busy while the test goes on.
  void slow_fill(std::uint8_t value, StreamHandle on) {
    CHECK_OK((*this)->fill(base, value, 8 * page_bytes, on));
  }
  // Keeps a stream from moving on: for as long as the result lives on the host device, for many
  // milliseconds on a real one.
  std::unique_ptr<host::Hold> busy(StreamHandle on) {
    std::unique_ptr<host::Hold> hold;
    if (const auto device = host_device(driver())) {
      CHECK_OK(device->hold(on, &hold));
    } else {
      const DevicePtr slow = mapped(64);
      for (int i = 0; i < 1000; ++i) CHECK_OK((*this)->fill(slow, 0, 64 * page_bytes, on));
    }
    return hold;
  }
  StreamHandle other = nullptr;
  EventHandle event = nullptr, answer = nullptr;
  DevicePtr base = 0;
};

}  // namespace gpupool

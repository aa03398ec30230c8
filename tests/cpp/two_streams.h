// A bench with two streams, events between them, and room for slow work.
#pragma once

#include <algorithm>
#include <chrono>

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
  // Keeps a stream from moving on: for as long as the result lives on the host device, for tens of
  // milliseconds on a real one, half a second on a slow stand-in for one.
  std::unique_ptr<host::Hold> busy(StreamHandle on) {
    std::unique_ptr<host::Hold> hold;
    if (const auto device = host_device(driver())) {
      CHECK_OK(device->hold(on, &hold));
    } else {
      const DevicePtr slow = mapped(64);
      StreamHandle trial = nullptr;
      CHECK_OK((*this)->stream_create(&trial));
      const auto begin = std::chrono::steady_clock::now();
      CHECK_OK((*this)->fill(slow, 0, 64 * page_bytes, trial));
      CHECK_OK((*this)->stream_synchronize(trial));
      const auto one = std::chrono::steady_clock::now() - begin;
      CHECK_OK((*this)->stream_destroy(trial));
      const auto count = std::min<std::int64_t>(1000, std::chrono::milliseconds(500) / one + 1);
      for (int i = 0; i < count; ++i) CHECK_OK((*this)->fill(slow, 0, 64 * page_bytes, on));
    }
    return hold;
  }
  StreamHandle other = nullptr;
  EventHandle event = nullptr, answer = nullptr;
  DevicePtr base = 0;
};

}  // namespace gpupool

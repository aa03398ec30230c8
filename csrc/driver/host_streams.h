// Streams and events of the host driver: one interface, and two ways to run what is on them.
//
// `threads`: a stream is a thread that runs its queue in order. `stepped`: nothing runs but inside
// a driver call, where a scheduler with a seed picks what; see host_stepped.cpp.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "driver/driver.h"

namespace gpupool::host {

// What one record of an event stands for; waiters keep it alive.
class EventRecord {
 public:
  void wait();
  void finish();
  [[nodiscard]] bool complete() const;

 private:
  mutable std::mutex mutex_;
  std::condition_variable done_;
  bool complete_ = false;
};

// Work of a stream. Calls of run(begin, end) that together cover [0, units), in any order, do it.
struct Work {
  std::size_t units = 1;
  std::function<void(std::size_t begin, std::size_t end)> run;
};

class Streams {
 public:
  Streams() = default;
  virtual ~Streams() = default;
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  virtual Status create(StreamHandle* stream) = 0;
  // Returns without waiting if the mode allows; the work of the stream is still done.
  virtual Status destroy(StreamHandle stream) = 0;
  virtual Status synchronize(StreamHandle stream) = 0;
  virtual Status synchronize_all() = 0;
  virtual Status enqueue(StreamHandle stream, Work work) = 0;
  // Puts what cuda.h gives no order into one of the orders that it may come in.
  virtual void shuffle(std::vector<std::size_t>& order) noexcept = 0;
  // Whether a copy and the digest of what arrived are better one piece of work than two.
  [[nodiscard]] virtual bool fuses() const noexcept = 0;
  // Later work of the stream waits until somebody finishes `hold`.
  virtual Status hold(StreamHandle stream, std::shared_ptr<EventRecord> hold) = 0;

  virtual Status create_event(EventHandle* event) = 0;
  virtual Status destroy_event(EventHandle event) = 0;
  virtual Status record(EventHandle event, StreamHandle stream) = 0;
  virtual Status query(EventHandle event) = 0;
  virtual Status wait(EventHandle event) = 0;
  virtual Status wait_on_stream(StreamHandle stream, EventHandle event) = 0;

  // Every driver call passes here first: a point at which work may run.
  virtual void point() noexcept = 0;
  virtual std::int64_t now_ns() noexcept = 0;
  virtual void advance_ns(std::int64_t ns) noexcept = 0;
  // What is enqueued and has not run yet.
  virtual std::size_t pending() const = 0;
  // The last wait that nothing could satisfy; empty if there was none.
  virtual std::string deadlock() const = 0;
};

std::unique_ptr<Streams> threaded_streams();
std::unique_ptr<Streams> stepped_streams(std::uint64_t seed);

}  // namespace gpupool::host

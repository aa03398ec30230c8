// Sees when the work of streams has run, for a trace: an event behind each piece of work, and
// somebody who looks which of them are complete.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "driver/trace.h"

namespace gpupool {

enum class WatchMode {
  thread,  // a thread looks every 20 microseconds while anything is in flight
  calls,   // each driver call looks: repeatable with stepped streams, which a thread would not be
};

// Thread safe. What its own driver calls meet is nobody else's concern: the work is then shown as
// far as it is known. Events are kept for reuse and go with the watcher, whose driver must outlive
// it; nobody may be calling it then.
class Watcher {
 public:
  static constexpr std::size_t in_flight_max = 8192;  // beyond that, work is dropped

  Watcher(Driver& driver, WatchMode mode);
  ~Watcher();
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;

  // From now on work is shown in `trace`. Throws std::system_error if there is no thread to have.
  void begin(std::shared_ptr<Trace> trace);
  // Work that is not seen complete by now is shown as unfinished.
  void end() noexcept;

  // Work was put on a stream by a call that began at `begin_ns`.
  void enqueued(DriverCall call, StreamHandle stream, std::int64_t begin_ns, std::uint64_t address,
                std::uint64_t bytes) noexcept;
  // A wait for this stream or, if it is null, for all has returned: what was enqueued before
  // sequence() gave `before` has ended. The time that the wait then ended.
  [[nodiscard]] std::uint64_t sequence() noexcept;
  std::int64_t settle(const StreamHandle* stream, std::uint64_t before) noexcept;
  // The stream is about to be destroyed: its handle may soon be another stream's. What is on it is
  // still watched. If it is not destroyed after all, remember() takes what forget() gave.
  std::int32_t forget(StreamHandle stream) noexcept;
  void remember(std::int32_t track) noexcept;
  // A driver call was made.
  void after_call() noexcept {
    if (mode_ == WatchMode::calls) look();
  }

 private:
  struct Work {
    TraceEvent event;
    EventHandle done;
    std::uint64_t sequence;
  };
  struct Track {
    StreamHandle stream = nullptr;
    bool destroyed = false;
    std::int64_t end_ns = 0;
    std::deque<Work> work;
  };

  void run(std::condition_variable& wake) noexcept;
  void look() noexcept;
  // Null when the trace takes no more.
  Track* track_of(StreamHandle stream, TraceEvent& event);
  void finish(Track& track, std::int64_t end_ns, Status status, TraceEvent::Kind kind) noexcept;
  EventHandle take_event();
  void stop_looking() noexcept;

  Driver& driver_;
  const WatchMode mode_;
  const std::string device_;
  const unsigned forks_;
  std::mutex mutex_;
  std::shared_ptr<Trace> trace_;          // null: nothing is watched
  std::map<std::int32_t, Track> tracks_;  // by the number of the track
  std::vector<EventHandle> events_;       // all
  std::vector<EventHandle> spare_;        // those in no work; room for all of them is reserved
  std::uint64_t next_sequence_ = 0;
  std::size_t in_flight_ = 0;
  std::atomic<bool> stopping_{false};
  // On the heap, to be left there in a forked child: neither ends where its thread is missing.
  struct Looker {
    std::condition_variable wake;
    std::thread thread;
  };
  std::unique_ptr<Looker> looker_;  // null: in no trace, or every call looks
};

}  // namespace gpupool

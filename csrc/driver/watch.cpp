#include "driver/watch.h"

#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace gpupool {
namespace {

using Kind = TraceEvent::Kind;

constexpr std::chrono::microseconds look_interval{20};

}  // namespace

Watcher::Watcher(Driver& driver, WatchMode mode)
    : driver_(driver),
      mode_(mode),
      device_((driver.kind() == DeviceKind::cuda ? "cuda:" : "host:") +
              std::to_string(driver.ordinal())),
      forks_(fork_count()) {}

Watcher::~Watcher() {
  if (fork_count() != forks_) {
    // The thread did not come along, and what it was doing to the events is not known.
    static_cast<void>(looker_.release());
    return;
  }
  end();
  for (const EventHandle event : events_) static_cast<void>(driver_.event_destroy(event));
}

void Watcher::begin(std::shared_ptr<Trace> trace) {
  std::unique_ptr<Looker> looker;
  if (mode_ == WatchMode::thread) {
    looker = std::make_unique<Looker>();
    stopping_ = false;
    looker->thread = std::thread([this, raw = looker.get()] { run(raw->wake); });
  }
  std::lock_guard lock(mutex_);
  trace_ = std::move(trace);
  looker_ = std::move(looker);
}

void Watcher::stop_looking() noexcept {
  if (!looker_) return;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  looker_->wake.notify_one();
  looker_->thread.join();
  std::lock_guard lock(mutex_);
  looker_.reset();
}

void Watcher::end() noexcept {
  if (fork_count() != forks_) return;
  stop_looking();
  look();
  std::lock_guard lock(mutex_);
  if (!trace_) return;
  const std::int64_t now = driver_.now_ns();
  for (auto& [number, track] : tracks_) {
    while (!track.work.empty()) finish(track, now, Status::success, Kind::unfinished);
  }
  tracks_.clear();
  trace_.reset();
}

void Watcher::run(std::condition_variable& wake) noexcept {
  static_cast<void>(pthread_setname_np(pthread_self(), "gpupool-watch"));
  // Else the kernel puts 50 microseconds on top of every sleep.
  static_cast<void>(prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL));
  while (!stopping_) {
    {
      std::unique_lock lock(mutex_);
      wake.wait(lock, [&] { return stopping_ || in_flight_ > 0; });
    }
    look();
    std::this_thread::sleep_for(look_interval);
  }
}

void Watcher::look() noexcept {
  if (fork_count() != forks_) return;
  std::unique_lock lock(mutex_);
  for (auto it = tracks_.begin(); it != tracks_.end();) {
    const std::int32_t number = it->first;
    if (it->second.work.empty()) {
      it = it->second.destroyed ? tracks_.erase(it) : std::next(it);
      continue;
    }
    const Work first = it->second.work.front();
    // Not under the lock: the driver may be busy, and then nobody else is to wait for it here.
    lock.unlock();
    const Status status = driver_.event_query(first.done);
    lock.lock();
    const std::int64_t now = driver_.now_ns();  // under the lock: no wait has returned before it
    it = tracks_.find(number);
    const bool same = it != tracks_.end() && !it->second.work.empty() &&
                      it->second.work.front().sequence == first.sequence;
    if (same && status != Status::not_ready) finish(it->second, now, status, Kind::ran);
    // On to the next track only when this one has more to wait for.
    it = status == Status::not_ready ? tracks_.upper_bound(number) : tracks_.lower_bound(number);
  }
}

void Watcher::finish(Track& track, std::int64_t end_ns, Status status, Kind kind) noexcept {
  Work& work = track.work.front();
  // A stream does one thing at a time.
  work.event.begin_ns = std::max(work.event.enqueued_ns, track.end_ns);
  work.event.end_ns = track.end_ns = std::max(work.event.begin_ns, end_ns);
  work.event.status = static_cast<std::int32_t>(status);
  work.event.kind = kind;
  trace_->ran(work.event);
  spare_.push_back(work.done);
  track.work.pop_front();
  --in_flight_;
}

EventHandle Watcher::take_event() {
  if (spare_.empty()) {
    events_.reserve(events_.size() + 1);
    spare_.reserve(events_.size() + 1);
    EventHandle event = nullptr;
    if (driver_.event_create(&event) != Status::success) return nullptr;
    events_.push_back(event);
    return event;
  }
  const EventHandle event = spare_.back();
  spare_.pop_back();
  return event;
}

Watcher::Track* Watcher::track_of(StreamHandle stream, TraceEvent& event) {
  for (auto& [number, track] : tracks_) {
    if (track.destroyed || track.stream != stream) continue;
    event.track = number;
    return &track;
  }
  event.track = trace_->add_stream_track(device_);
  if (event.track == 0) return nullptr;
  Track& track = tracks_[event.track];
  track.stream = stream;
  return &track;
}

void Watcher::enqueued(DriverCall call, StreamHandle stream, std::int64_t begin_ns,
                       std::uint64_t address, std::uint64_t bytes) noexcept {
  if (fork_count() != forks_) return;
  // Held while the event is recorded, so that events come in the order of their work.
  std::lock_guard lock(mutex_);
  if (!trace_) return;
  EventHandle done = nullptr;
  try {
    TraceEvent event{begin_ns, begin_ns, begin_ns, address, bytes, 0, 0, call, Kind::ran};
    Track* track = track_of(stream, event);
    if (track != nullptr && in_flight_ < in_flight_max) done = take_event();
    if (done != nullptr) {
      track->work.push_back({event, done, next_sequence_});
      if (driver_.event_record(done, stream) == Status::success) {
        ++next_sequence_;
        if (++in_flight_ == 1 && looker_) looker_->wake.notify_one();
        return;
      }
      track->work.pop_back();
    }
  } catch (const std::bad_alloc&) {
    // Dropped, as without an event.
  }
  if (done != nullptr) spare_.push_back(done);
  trace_->drop();
}

std::uint64_t Watcher::sequence() noexcept {
  if (fork_count() != forks_) return 0;
  std::lock_guard lock(mutex_);
  return next_sequence_;
}

std::int64_t Watcher::settle(const StreamHandle* stream, std::uint64_t before) noexcept {
  if (fork_count() != forks_) return driver_.now_ns();
  std::lock_guard lock(mutex_);
  const std::int64_t now = driver_.now_ns();
  for (auto& [number, track] : tracks_) {
    if (stream != nullptr && (track.destroyed || track.stream != *stream)) continue;
    while (!track.work.empty() && track.work.front().sequence < before) {
      finish(track, now, Status::success, Kind::ran);
    }
  }
  return now;
}

std::int32_t Watcher::forget(StreamHandle stream) noexcept {
  if (fork_count() != forks_) return 0;
  std::lock_guard lock(mutex_);
  for (auto& [number, track] : tracks_) {
    if (track.destroyed || track.stream != stream) continue;
    track.destroyed = true;
    return number;
  }
  return 0;
}

void Watcher::remember(std::int32_t track) noexcept {
  if (fork_count() != forks_) return;
  std::lock_guard lock(mutex_);
  if (const auto it = tracks_.find(track); it != tracks_.end()) it->second.destroyed = false;
}

}  // namespace gpupool

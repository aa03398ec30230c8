// Streams as threads: work runs as the machine's scheduler has it.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "driver/host_streams.h"

namespace gpupool {

struct StreamState {
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable idle;
  std::deque<std::function<void()>> queue;
  bool running = false;
  bool closing = false;
  std::thread thread;
};

struct EventState {
  std::mutex mutex;
  std::shared_ptr<host::EventRecord> last;  // null: never recorded, counts as complete
};

namespace host {

void EventRecord::wait() {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return complete_; });
}

void EventRecord::finish() {
  {
    std::lock_guard lock(mutex_);
    complete_ = true;
  }
  done_.notify_all();
}

bool EventRecord::complete() const {
  std::lock_guard lock(mutex_);
  return complete_;
}

namespace {

void run(StreamState& stream) {
  std::unique_lock lock(stream.mutex);
  for (;;) {
    stream.wake.wait(lock, [&] { return stream.closing || !stream.queue.empty(); });
    if (stream.queue.empty()) return;
    auto work = std::move(stream.queue.front());
    stream.queue.pop_front();
    stream.running = true;
    lock.unlock();
    work();
    lock.lock();
    stream.running = false;
    if (stream.queue.empty()) stream.idle.notify_all();
  }
}

void close(StreamState& stream) {
  {
    std::lock_guard lock(stream.mutex);
    stream.closing = true;
  }
  stream.wake.notify_all();
  stream.thread.join();
}

class ThreadedStreams final : public Streams {
 public:
  ~ThreadedStreams() override {
    // In a forked child there is nobody to join, and a condition that is waited on cannot be
    // destroyed.
    if (getpid() != process_) {
      static_cast<void>(streams_.release());
      static_cast<void>(events_.release());
      return;
    }
    for (auto& [handle, state] : *streams_) close(*state);
  }

  Status create(StreamHandle* stream) override {
    const auto state = std::make_shared<StreamState>();
    std::lock_guard lock(mutex_);
    streams_->emplace(state.get(), state);
    try {
      state->thread = std::thread([raw = state.get()] { run(*raw); });
    } catch (...) {
      streams_->erase(state.get());
      throw;
    }
    *stream = state.get();
    return Status::success;
  }

  Status destroy(StreamHandle handle) override {
    std::shared_ptr<StreamState> state;
    {
      std::lock_guard lock(mutex_);
      const auto it = streams_->find(handle);
      if (it == streams_->end()) return Status::invalid_handle;
      state = std::move(it->second);
      streams_->erase(it);
    }
    close(*state);
    return Status::success;
  }

  Status synchronize(StreamHandle handle) override {
    const auto state = stream(handle);
    if (!state) return Status::invalid_handle;
    std::unique_lock lock(state->mutex);
    state->idle.wait(lock, [&] { return state->queue.empty() && !state->running; });
    return Status::success;
  }

  Status synchronize_all() override {
    std::vector<StreamHandle> handles;
    {
      std::lock_guard lock(mutex_);
      handles.reserve(streams_->size());
      for (const auto& [handle, state] : *streams_) handles.push_back(handle);
    }
    // A stream destroyed meanwhile has finished its work.
    for (const StreamHandle handle : handles) static_cast<void>(synchronize(handle));
    return Status::success;
  }

  Status enqueue(StreamHandle handle, Work work) override {
    return push(handle, [work = std::move(work)] { work.run(0, work.units); });
  }

  void shuffle(std::vector<std::size_t>&) noexcept override {}
  [[nodiscard]] bool fuses() const noexcept override { return true; }  // each byte is read once

  Status hold(StreamHandle handle, std::shared_ptr<EventRecord> hold) override {
    return push(handle, [hold = std::move(hold)] { hold->wait(); });
  }

  Status create_event(EventHandle* event) override {
    auto state = std::make_shared<EventState>();
    std::lock_guard lock(mutex_);
    events_->emplace(state.get(), state);
    *event = state.get();
    return Status::success;
  }

  Status destroy_event(EventHandle handle) override {
    std::lock_guard lock(mutex_);
    return events_->erase(handle) == 1 ? Status::success : Status::invalid_handle;
  }

  Status record(EventHandle handle, StreamHandle stream) override {
    const auto state = event(handle);
    if (!state) return Status::invalid_handle;
    auto record = std::make_shared<EventRecord>();
    std::lock_guard lock(state->mutex);
    const Status status = push(stream, [record] { record->finish(); });
    if (status == Status::success) state->last = std::move(record);
    return status;
  }

  Status query(EventHandle handle) override {
    const auto state = event(handle);
    if (!state) return Status::invalid_handle;
    const auto last = last_of(*state);
    return !last || last->complete() ? Status::success : Status::not_ready;
  }

  Status wait(EventHandle handle) override {
    const auto state = event(handle);
    if (!state) return Status::invalid_handle;
    if (const auto last = last_of(*state)) last->wait();
    return Status::success;
  }

  Status wait_on_stream(StreamHandle stream, EventHandle handle) override {
    const auto state = event(handle);
    if (!state) return Status::invalid_handle;
    // What counts is the last record at the time of this call, not at the time it runs.
    return push(stream, [last = last_of(*state)] {
      if (last) last->wait();
    });
  }

  void point() noexcept override {}
  std::int64_t now_ns() noexcept override {
    return advanced_ns_ + std::chrono::duration_cast<std::chrono::nanoseconds>(
                              std::chrono::steady_clock::now().time_since_epoch())
                              .count();
  }
  void advance_ns(std::int64_t ns) noexcept override { advanced_ns_ += ns; }
  std::size_t pending() const override {
    std::lock_guard lock(mutex_);
    std::size_t sum = 0;
    for (const auto& [handle, state] : *streams_) {
      std::lock_guard stream_lock(state->mutex);
      sum += state->queue.size() + (state->running ? 1 : 0);
    }
    return sum;
  }
  std::string deadlock() const override { return {}; }  // threads that wait for ever do just that

 private:
  // Null when the handle is unknown.
  std::shared_ptr<StreamState> stream(StreamHandle handle) {
    std::lock_guard lock(mutex_);
    const auto it = streams_->find(handle);
    return it == streams_->end() ? nullptr : it->second;
  }
  std::shared_ptr<EventState> event(EventHandle handle) {
    std::lock_guard lock(mutex_);
    const auto it = events_->find(handle);
    return it == events_->end() ? nullptr : it->second;
  }
  static std::shared_ptr<EventRecord> last_of(EventState& state) {
    std::lock_guard lock(state.mutex);
    return state.last;
  }
  Status push(StreamHandle handle, std::function<void()> work) {
    const auto state = stream(handle);
    if (!state) return Status::invalid_handle;
    {
      std::lock_guard lock(state->mutex);
      if (state->closing) return Status::invalid_handle;  // destroyed by another thread just now
      state->queue.push_back(std::move(work));
    }
    state->wake.notify_one();
    return Status::success;
  }

  mutable std::mutex mutex_;
  using StreamMap = std::map<StreamHandle, std::shared_ptr<StreamState>>;
  using EventMap = std::map<EventHandle, std::shared_ptr<EventState>>;
  std::unique_ptr<StreamMap> streams_ = std::make_unique<StreamMap>();
  std::unique_ptr<EventMap> events_ = std::make_unique<EventMap>();
  const pid_t process_ = getpid();
  std::atomic<std::int64_t> advanced_ns_{0};
};

}  // namespace

std::unique_ptr<Streams> threaded_streams() { return std::make_unique<ThreadedStreams>(); }

}  // namespace host
}  // namespace gpupool

#include "driver/host_streams.h"

#include <utility>
#include <vector>

namespace gpupool {

void EventRecord::wait() {
  std::unique_lock lock(mutex);
  done.wait(lock, [&] { return complete; });
}

void EventRecord::finish() {
  {
    std::lock_guard lock(mutex);
    complete = true;
  }
  done.notify_all();
}

namespace host {
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

}  // namespace

Streams::~Streams() {
  for (auto& [handle, state] : streams_) close(*state);
}

std::shared_ptr<StreamState> Streams::stream(StreamHandle handle) {
  std::lock_guard lock(mutex_);
  const auto it = streams_.find(handle);
  return it == streams_.end() ? nullptr : it->second;
}

std::shared_ptr<EventState> Streams::event(EventHandle handle) {
  std::lock_guard lock(mutex_);
  const auto it = events_.find(handle);
  return it == events_.end() ? nullptr : it->second;
}

Status Streams::create(StreamHandle* stream) {
  const auto state = std::make_shared<StreamState>();
  std::lock_guard lock(mutex_);
  streams_.emplace(state.get(), state);
  try {
    state->thread = std::thread([raw = state.get()] { run(*raw); });
  } catch (...) {
    streams_.erase(state.get());
    throw;
  }
  *stream = state.get();
  return Status::success;
}

Status Streams::destroy(StreamHandle handle) {
  std::shared_ptr<StreamState> state;
  {
    std::lock_guard lock(mutex_);
    const auto it = streams_.find(handle);
    if (it == streams_.end()) return Status::invalid_handle;
    state = std::move(it->second);
    streams_.erase(it);
  }
  close(*state);
  return Status::success;
}

Status Streams::synchronize(StreamHandle handle) {
  const auto state = stream(handle);
  if (!state) return Status::invalid_handle;
  std::unique_lock lock(state->mutex);
  state->idle.wait(lock, [&] { return state->queue.empty() && !state->running; });
  return Status::success;
}

Status Streams::synchronize_all() {
  std::vector<StreamHandle> handles;
  {
    std::lock_guard lock(mutex_);
    handles.reserve(streams_.size());
    for (const auto& [handle, state] : streams_) handles.push_back(handle);
  }
  // A stream destroyed meanwhile has finished its work.
  for (const StreamHandle handle : handles) static_cast<void>(synchronize(handle));
  return Status::success;
}

Status Streams::enqueue(StreamHandle handle, std::function<void()> work) {
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

Status Streams::create_event(EventHandle* event) {
  auto state = std::make_shared<EventState>();
  std::lock_guard lock(mutex_);
  events_.emplace(state.get(), state);
  *event = state.get();
  return Status::success;
}

Status Streams::destroy_event(EventHandle handle) {
  std::lock_guard lock(mutex_);
  return events_.erase(handle) == 1 ? Status::success : Status::invalid_handle;
}

Status Streams::record(EventHandle handle, StreamHandle stream) {
  const auto state = event(handle);
  if (!state) return Status::invalid_handle;
  auto record = std::make_shared<EventRecord>();
  std::lock_guard lock(state->mutex);
  const Status status = enqueue(stream, [record] { record->finish(); });
  if (status == Status::success) state->last = std::move(record);
  return status;
}

Status Streams::query(EventHandle handle) {
  const auto state = event(handle);
  if (!state) return Status::invalid_handle;
  std::lock_guard lock(state->mutex);
  if (!state->last) return Status::success;
  std::lock_guard record_lock(state->last->mutex);
  return state->last->complete ? Status::success : Status::not_ready;
}

Status Streams::wait(EventHandle handle) {
  const auto state = event(handle);
  if (!state) return Status::invalid_handle;
  std::shared_ptr<EventRecord> last;
  {
    std::lock_guard lock(state->mutex);
    last = state->last;
  }
  if (last) last->wait();
  return Status::success;
}

Status Streams::wait_on_stream(StreamHandle stream, EventHandle handle) {
  const auto state = event(handle);
  if (!state) return Status::invalid_handle;
  // What counts is the last record at the time of this call, not at the time it runs.
  std::shared_ptr<EventRecord> last;
  {
    std::lock_guard lock(state->mutex);
    last = state->last;
  }
  return enqueue(stream, [last] {
    if (last) last->wait();
  });
}

}  // namespace host
}  // namespace gpupool

// Streams and events of the host driver: a stream is a thread that runs its queue in order.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "driver/driver.h"

namespace gpupool {

// What one record of an event stands for; waiters keep it alive.
struct EventRecord {
  std::mutex mutex;
  std::condition_variable done;
  bool complete = false;

  void wait();
  void finish();
};

struct EventState {
  std::mutex mutex;
  std::shared_ptr<EventRecord> last;  // null: never recorded, counts as complete
};

struct StreamState {
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable idle;
  std::deque<std::function<void()>> queue;
  bool running = false;
  bool closing = false;
  std::thread thread;
};

namespace host {

class Streams {
 public:
  ~Streams();

  Status create(StreamHandle* stream);
  Status destroy(StreamHandle stream);
  Status synchronize(StreamHandle stream);
  Status synchronize_all();
  Status enqueue(StreamHandle stream, std::function<void()> work);

  Status create_event(EventHandle* event);
  Status destroy_event(EventHandle event);
  Status record(EventHandle event, StreamHandle stream);
  Status query(EventHandle event);
  Status wait(EventHandle event);
  Status wait_on_stream(StreamHandle stream, EventHandle event);

 private:
  // Null when the handle is unknown.
  std::shared_ptr<StreamState> stream(StreamHandle handle);
  std::shared_ptr<EventState> event(EventHandle handle);

  std::mutex mutex_;
  std::map<StreamHandle, std::shared_ptr<StreamState>> streams_;
  std::map<EventHandle, std::shared_ptr<EventState>> events_;
};

}  // namespace host
}  // namespace gpupool

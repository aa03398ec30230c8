// Streams without threads: work runs only inside driver calls, when a scheduler with a seed says.
//
// Whatever cuda.h leaves open is drawn: each piece of work runs as early as the call that enqueued
// it, as late as the wait that needs it, or at any call between; copies run in pieces between which
// other streams move on; work that nobody waits for may never run. The same calls with the same
// seed give the same schedule. A wait that nothing can satisfy is an error rather than a hang.
#include <algorithm>
#include <map>
#include <utility>

#include "driver/host_ops.h"

namespace gpupool::host {
namespace {

Id id_of(StreamHandle stream) { return reinterpret_cast<Id>(stream); }
Id id_of(EventHandle event) { return reinterpret_cast<Id>(event); }

class SteppedStreams final : public Streams {
 public:
  explicit SteppedStreams(std::uint64_t seed) : random_(seed) { change_mood(); }

  Status create(StreamHandle* stream) override {
    std::lock_guard lock(mutex_);
    streams_.emplace(next_id_, Stream{});
    *stream = reinterpret_cast<StreamHandle>(next_id_++);
    return Status::success;
  }

  Status destroy(StreamHandle handle) override {
    std::lock_guard lock(mutex_);
    Stream* stream = find(handle);
    if (stream == nullptr) return Status::invalid_handle;
    stream->destroyed = true;
    forget_if_done(id_of(handle));
    return Status::success;
  }

  Status synchronize(StreamHandle handle) override {
    std::lock_guard lock(mutex_);
    Stream* stream = find(handle);
    if (stream == nullptr) return Status::invalid_handle;
    const Id id = id_of(handle);
    return run_until([&] { return stream->queue.empty(); }, id,
                     [&] { return "stream_synchronize of stream " + std::to_string(id); });
  }

  Status synchronize_all() override {
    std::lock_guard lock(mutex_);
    const auto behind = [&] {  // the first stream with work left; 0 if there is none
      const auto it = std::find_if(streams_.begin(), streams_.end(),
                                   [](const auto& entry) { return !entry.second.queue.empty(); });
      return it == streams_.end() ? Id{0} : it->first;
    };
    for (Id id = behind(); id != 0; id = behind()) {
      const Status status =
          run_until([&] { return streams_.count(id) == 0 || streams_.at(id).queue.empty(); }, id,
                    [&] { return "context_synchronize for stream " + std::to_string(id); });
      if (status != Status::success) return status;
    }
    return Status::success;
  }

  Status enqueue(StreamHandle handle, Work work) override {
    std::lock_guard lock(mutex_);
    return push(handle, Op::work_of(std::move(work), random_));
  }

  [[nodiscard]] bool fuses() const noexcept override { return false; }  // as on a GPU
  void shuffle(std::vector<std::size_t>& order) noexcept override {
    std::lock_guard lock(mutex_);
    for (std::size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1], order[random_.below(i)]);
    }
  }

  Status hold(StreamHandle handle, std::shared_ptr<EventRecord> hold) override {
    std::lock_guard lock(mutex_);
    return push(handle, Op::wait_for(std::move(hold), 0, 0, random_));
  }

  Status create_event(EventHandle* event) override {
    std::lock_guard lock(mutex_);
    events_.emplace(next_id_, Event{});
    *event = reinterpret_cast<EventHandle>(next_id_++);
    return Status::success;
  }

  Status destroy_event(EventHandle handle) override {
    std::lock_guard lock(mutex_);
    return events_.erase(id_of(handle)) == 1 ? Status::success : Status::invalid_handle;
  }

  Status record(EventHandle handle, StreamHandle stream) override {
    std::lock_guard lock(mutex_);
    Event* event = find(handle);
    if (event == nullptr) return Status::invalid_handle;
    auto record = std::make_shared<EventRecord>();
    const Status status = push(stream, Op::record_of(record, id_of(handle), random_));
    if (status == Status::success) *event = {std::move(record), id_of(stream)};
    return status;
  }

  Status query(EventHandle handle) override {
    std::lock_guard lock(mutex_);
    const Event* event = find(handle);
    if (event == nullptr) return Status::invalid_handle;
    if (!event->last || event->last->complete()) return Status::success;
    // Who polls must see it happen one day, however late this schedule runs things.
    if (random_.below(4) == 0) {
      if (const Id next = needed(event->recorded); next != 0) step(next);
    }
    return event->last->complete() ? Status::success : Status::not_ready;
  }

  Status wait(EventHandle handle) override {
    std::lock_guard lock(mutex_);
    const Event* event = find(handle);
    if (event == nullptr) return Status::invalid_handle;
    if (!event->last) return Status::success;
    return run_until([&] { return event->last->complete(); }, event->recorded,
                     [&] {
                       return "event_synchronize of event " + std::to_string(id_of(handle)) +
                              " recorded on stream " + std::to_string(event->recorded);
                     });
  }

  Status wait_on_stream(StreamHandle stream, EventHandle handle) override {
    std::lock_guard lock(mutex_);
    const Event* event = find(handle);
    if (event == nullptr) return Status::invalid_handle;
    if (!event->last) return find(stream) ? Status::success : Status::invalid_handle;
    // What counts is the last record at the time of this call, not at the time it runs.
    return push(stream, Op::wait_for(event->last, id_of(handle), event->recorded, random_));
  }

  void point() noexcept override {
    std::lock_guard lock(mutex_);
    run_some();
  }
  std::int64_t now_ns() noexcept override {
    std::lock_guard lock(mutex_);
    return clock_ns_ += static_cast<std::int64_t>(random_.below(1000));
  }
  void advance_ns(std::int64_t ns) noexcept override {
    std::lock_guard lock(mutex_);
    clock_ns_ += ns;
  }
  std::size_t pending() const override {
    std::lock_guard lock(mutex_);
    std::size_t sum = 0;
    for (const auto& [id, stream] : streams_) sum += stream.queue.size();
    return sum;
  }
  std::string deadlock() const override {
    std::lock_guard lock(mutex_);
    return deadlock_;
  }

 private:
  enum class Mood { late, early, mixed };

  Stream* find(StreamHandle handle) {
    const auto it = streams_.find(id_of(handle));
    return it == streams_.end() || it->second.destroyed ? nullptr : &it->second;
  }
  Event* find(EventHandle handle) {
    const auto it = events_.find(id_of(handle));
    return it == events_.end() ? nullptr : &it->second;
  }

  Status push(StreamHandle handle, Op op) {
    Stream* stream = find(handle);
    if (stream == nullptr) return Status::invalid_handle;
    stream->queue.push_back(std::move(op));
    run_some();  // it may be done before the call that asked for it returns
    return Status::success;
  }

  static bool ready(const Stream& stream) {
    return !stream.queue.empty() && stream.queue.front().ready();
  }

  // Runs the next piece of what is first in a stream that is ready.
  void step(Id id) {
    Stream& stream = streams_.at(id);
    Op& head = stream.queue.front();
    if (head.kind == Op::Kind::work) {
      const auto [begin, end] = head.pieces.take();
      clock_ns_ += static_cast<std::int64_t>(1 + (end - begin) / 16);  // 16 GB/s
      head.work.run(begin, end);
      if (!head.pieces.done()) return;
    } else if (head.kind == Op::Kind::record) {
      head.record->finish();
    }
    stream.queue.pop_front();
    forget_if_done(id);
  }

  void forget_if_done(Id id) {
    const auto it = streams_.find(id);
    if (it->second.destroyed && it->second.queue.empty()) streams_.erase(it);
  }

  // The stream whose next step brings `id` on; 0 if there is nothing that could.
  Id needed(Id id) const {
    for (;;) {
      const auto it = streams_.find(id);
      if (it == streams_.end()) return 0;  // behind a hold
      if (ready(it->second)) return id;
      id = it->second.queue.front().recorded;  // records are older than their waits: no cycle
    }
  }

  // One of the ready streams other than the neglected one, drawn; 0 if there is none.
  Id any_ready() {
    Id chosen = 0;
    std::uint64_t seen = 0;
    for (const auto& [id, stream] : streams_) {
      if (id % 4 != neglected_ && ready(stream) && random_.below(++seen) == 0) chosen = id;
    }
    return chosen;
  }

  void change_mood() {
    mood_ = static_cast<Mood>(random_.below(3));
    neglected_ = random_.below(8);  // every other time nobody
  }

  void run_some() {
    if (random_.below(64) == 0) change_mood();
    while (mood_ == Mood::early || (mood_ == Mood::mixed && random_.below(2) == 0)) {
      const Id id = any_ready();
      if (id == 0) return;
      step(id);
    }
  }

  template <typename Done, typename Name>
  Status run_until(Done done, Id id, Name name) {
    while (!done()) {
      Id next = needed(id);
      if (next == 0) {
        deadlock_ = name() + " waits for " + obstacle(id);
        return Status::launch_timeout;
      }
      if (mood_ != Mood::late && random_.below(2) == 0) {
        if (const Id other = any_ready(); other != 0) next = other;
      }
      step(next);
    }
    return Status::success;
  }

  // What is first in the way of a stream, for people.
  std::string obstacle(Id id) const {
    const Op& head = streams_.at(id).queue.at(0);
    const std::string where = "stream " + std::to_string(id);
    if (head.event == 0) return where + ", which is held and nothing else runs";
    return where + ", which waits for event " + std::to_string(head.event) + ", which waits for " +
           obstacle(head.recorded);
  }

  mutable std::mutex mutex_;
  Random random_;
  Mood mood_ = Mood::mixed;
  Id neglected_ = 0;
  Id next_id_ = 1;
  std::map<Id, Stream> streams_;
  std::map<Id, Event> events_;
  std::int64_t clock_ns_ = 1'000'000'000;
  std::string deadlock_;
};

}  // namespace

Pieces::Pieces(std::size_t units, Random& random)
    : pieces_{}, left_(std::min<std::size_t>(1 + random.below(pieces_.size()), units)) {
  std::size_t at = 0;
  for (std::size_t i = 0; i < left_; ++i) {
    const std::size_t after = left_ - i - 1, rest = units - at;
    const std::size_t n = after == 0 ? rest : 1 + random.below(rest - after);
    pieces_[i] = {at, at + n};
    at += n;
  }
  for (std::size_t i = left_; i > 1; --i) std::swap(pieces_[i - 1], pieces_[random.below(i)]);
}

std::unique_ptr<Streams> stepped_streams(std::uint64_t seed) {
  return std::make_unique<SteppedStreams>(seed);
}

}  // namespace gpupool::host

// A record of what happened when, in bounded memory, written in Chrome's trace format.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "driver/driver.h"

namespace gpupool {

// How many forks lie between this process and the one that loaded gpupool. Locks that another
// thread held, and threads, do not come along: who remembers a smaller number keeps still.
unsigned fork_count() noexcept;

// One slice of the timeline. All times are of Driver::now_ns.
struct TraceEvent {
  enum class Kind : std::uint8_t {
    call,        // a driver call, on the track of its thread
    ran,         // work of a stream, on the track of the stream, when it ran
    unfinished,  // the same, not seen to end before the trace did
    span,        // what somebody above named, on the track of its thread
  };
  std::int64_t begin_ns;
  std::int64_t end_ns;
  std::int64_t enqueued_ns;  // of ran: the call that asked for it began
  std::uint64_t address;     // 0: none. Of a span: which text
  std::uint64_t bytes;
  std::int32_t track;
  std::int32_t status;
  DriverCall call;
  Kind kind;
};

// Thread safe. Recording never throws: what finds no memory, or no room, is dropped and counted.
// In a forked child it records nothing.
class Trace {
 public:
  static constexpr std::size_t default_capacity = 1'000'000;  // events, of about 64 bytes each
  // Tracks of streams are numbered above any thread.
  static constexpr std::int32_t first_stream_track = 1 << 22;
  using Value = std::variant<std::int64_t, double, std::string>;
  using Values = std::vector<std::pair<std::string, Value>>;

  explicit Trace(std::size_t capacity = default_capacity);

  // On the track of the calling thread; the event's track is set here.
  void call(TraceEvent event) noexcept;
  void span(std::string_view name, std::int64_t begin_ns, std::int64_t end_ns,
            const Values& values) noexcept;
  // On the track that it names.
  void ran(const TraceEvent& event) noexcept;
  // A track for one stream of a device; 0 when nothing more is recorded. Throws std::bad_alloc.
  std::int32_t add_stream_track(const std::string& device);
  void drop() noexcept;

  // Nothing is recorded, nor counted as dropped, from now on.
  void close() noexcept;
  // What follows is for a closed trace.
  [[nodiscard]] std::uint64_t dropped() const noexcept { return dropped_; }
  [[nodiscard]] const std::deque<TraceEvent>& events() const noexcept { return events_; }
  // Hands a JSON document to `sink` in pieces.
  void write(const std::function<void(std::string_view)>& sink) const;

 private:
  void name_this_thread(std::int32_t track);
  template <typename Change>
  void record(Change change) noexcept;
  void append(std::string& out, const TraceEvent& event) const;

  const std::size_t capacity_;
  const unsigned forks_;
  std::mutex mutex_;
  bool closed_ = false;
  std::uint64_t dropped_ = 0;
  std::deque<TraceEvent> events_;
  std::deque<std::string> texts_;               // of spans: name and values as JSON
  std::map<std::int32_t, std::string> tracks_;  // names
  std::int32_t next_stream_track_ = first_stream_track;
};

}  // namespace gpupool

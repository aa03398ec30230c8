// What waits on a stepped stream, and the numbers its schedule is drawn from.
#pragma once

#include <array>
#include <deque>
#include <utility>

#include "driver/host_streams.h"

namespace gpupool::host {

using Id = std::uint64_t;  // of streams and events; never used twice, so that no stale one is valid

// splitmix64: small enough to make one for each of many thousand schedules.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t end) { return next() % end; }

 private:
  std::uint64_t state_;
};

// A few pieces that run in an order of their own, as copy engines promise none within a copy.
class Pieces {
 public:
  Pieces(std::size_t units, Random& random);
  [[nodiscard]] bool done() const noexcept { return left_ == 0; }
  std::pair<std::size_t, std::size_t> take() noexcept { return pieces_[--left_]; }

 private:
  std::array<std::pair<std::size_t, std::size_t>, 4> pieces_;
  std::size_t left_;
};

struct Op {
  enum class Kind { work, record, wait };
  static Op work_of(Work work, Random& random) {
    const Pieces pieces(work.units, random);
    return {Kind::work, std::move(work), pieces, nullptr, 0, 0};
  }
  static Op record_of(std::shared_ptr<EventRecord> record, Id event, Random& random) {
    const Pieces piece(1, random);
    return {Kind::record, {}, piece, std::move(record), event, 0};
  }
  static Op wait_for(std::shared_ptr<EventRecord> record, Id event, Id stream, Random& random) {
    const Pieces piece(1, random);
    return {Kind::wait, {}, piece, std::move(record), event, stream};
  }
  [[nodiscard]] bool ready() const { return kind != Kind::wait || record->complete(); }

  Kind kind;
  Work work;
  Pieces pieces;
  std::shared_ptr<EventRecord> record;
  Id event;     // of a record or a wait; 0 is a hold
  Id recorded;  // of a wait: the stream that has the record
};

struct Stream {
  std::deque<Op> queue;
  bool destroyed = false;  // its handle is gone; what it holds still runs
};

struct Event {
  std::shared_ptr<EventRecord> last;  // null: never recorded, counts as complete
  Id recorded = 0;
};

}  // namespace gpupool::host

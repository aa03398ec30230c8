#include "driver/trace.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <numeric>

namespace gpupool {
namespace {

std::atomic<unsigned> forks{0};
const int forks_counted =
    pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });

std::int32_t this_thread() {
  // A forked child has another number.
  thread_local std::pair<std::int32_t, unsigned> known{0, 0};
  if (known.first == 0 || known.second != fork_count()) known = {gettid(), fork_count()};
  return known.first;
}

void append_number(std::string& out, std::integral auto value) {
  char digits[24];
  const auto end = std::to_chars(digits, digits + sizeof digits, value);
  out.append(digits, end.ptr);
}

// Microseconds, to the nanosecond.
void append_us(std::string& out, std::int64_t ns) {
  char text[40];
  out.append(text, static_cast<std::size_t>(std::snprintf(text, sizeof text, "%" PRId64 ".%03d",
                                                          ns / 1000, int(ns % 1000))));
}

void append_string(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned char>(c));
      out += escaped;
    } else {
      out += c;
    }
  }
  out += '"';
}

void append_value(std::string& out, const Trace::Value& value) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    append_string(out, *text);
  } else if (const auto* number = std::get_if<double>(&value)) {
    char digits[40];
    const int n = std::snprintf(digits, sizeof digits, "%.9g", *number);
    // JSON has no word for what is not finite.
    out += std::isfinite(*number) ? std::string(digits, static_cast<std::size_t>(n)) : "null";
  } else {
    append_number(out, std::get<std::int64_t>(value));
  }
}

void append_metadata(std::string& out, const char* what, std::int32_t track, const char* key,
                     const std::string& json) {
  out += R"({"ph":"M","name":")";
  out += what;
  out += R"(","pid":)";
  append_number(out, getpid());
  out += R"(,"tid":)";
  append_number(out, track);
  out += R"(,"args":{")";
  out += key;
  out += "\":" + json + "}},\n";
}

}  // namespace

unsigned fork_count() noexcept { return forks.load(std::memory_order_relaxed); }

Trace::Trace(std::size_t capacity) : capacity_(capacity), forks_(fork_count()) {}

template <typename Change>
void Trace::record(Change change) noexcept {
  if (fork_count() != forks_) return;
  std::lock_guard lock(mutex_);
  if (closed_) return;
  try {
    if (events_.size() < capacity_) {
      change();
    } else {
      ++dropped_;
    }
  } catch (...) {  // no memory
    ++dropped_;
  }
}

void Trace::name_this_thread(std::int32_t track) {
  if (tracks_.count(track) != 0) return;
  char name[32] = "thread";
  static_cast<void>(pthread_getname_np(pthread_self(), name, sizeof name));
  tracks_.emplace(track, name);
}

void Trace::call(TraceEvent event) noexcept {
  record([&] {
    event.track = this_thread();
    name_this_thread(event.track);
    events_.push_back(event);
  });
}

void Trace::span(std::string_view name, std::int64_t begin_ns, std::int64_t end_ns,
                 const Values& values) noexcept {
  record([&] {
    const std::int32_t track = this_thread();
    name_this_thread(track);
    std::string text = "\"name\":";
    append_string(text, name);
    text += ",\"args\":{";
    for (const auto& [key, value] : values) {
      if (text.back() != '{') text += ',';
      append_string(text, key);
      text += ':';
      append_value(text, value);
    }
    text += '}';
    texts_.push_back(std::move(text));
    events_.push_back(
        {begin_ns, end_ns, begin_ns, texts_.size() - 1, 0, track, 0, {}, TraceEvent::Kind::span});
  });
}

void Trace::ran(const TraceEvent& event) noexcept {
  record([&] { events_.push_back(event); });
}

std::int32_t Trace::add_stream_track(const std::string& device) {
  std::lock_guard lock(mutex_);
  if (closed_ || events_.size() >= capacity_) return 0;
  const std::int32_t number = next_stream_track_ - first_stream_track + 1;
  tracks_.emplace(next_stream_track_, device + " stream " + std::to_string(number));
  return next_stream_track_++;
}

void Trace::drop() noexcept {
  if (fork_count() != forks_) return;
  std::lock_guard lock(mutex_);
  if (!closed_) ++dropped_;
}

void Trace::close() noexcept {
  if (fork_count() != forks_) return;
  std::lock_guard lock(mutex_);
  closed_ = true;
}

void Trace::append(std::string& out, const TraceEvent& event) const {
  using Kind = TraceEvent::Kind;
  out += R"({"ph":"X","pid":)";
  append_number(out, getpid());
  out += R"(,"tid":)";
  append_number(out, event.track);
  out += R"(,"ts":)";
  append_us(out, event.begin_ns);
  out += R"(,"dur":)";
  append_us(out, event.end_ns - event.begin_ns);
  out += ',';
  if (event.kind == Kind::span) {
    out += texts_[event.address] + "},\n";
    return;
  }
  out += R"("cat":")";
  out += event.kind == Kind::call ? "driver" : "stream";
  out += R"(","name":")";
  out += driver_call_names[static_cast<std::size_t>(event.call)];
  out += R"(","args":{)";
  const auto key = [&](const char* name) {
    if (out.back() != '{') out += ',';
    out += '"';
    out += name;
    out += "\":";
  };
  if (event.address != 0) {
    char text[24];
    std::snprintf(text, sizeof text, "\"0x%" PRIx64 "\"", event.address);
    key("address");
    out += text;
  }
  if (event.bytes != 0) {
    key("bytes");
    append_number(out, event.bytes);
  }
  if (event.kind != Kind::call) {
    key("queued_us");
    append_us(out, event.begin_ns - event.enqueued_ns);
  }
  if (event.kind == Kind::unfinished) {
    key("unfinished");
    out += "true";
  }
  if (event.status != 0) {
    key("status");
    append_number(out, event.status);
  }
  out += "}},\n";
}

void Trace::write(const std::function<void(std::string_view)>& sink) const {
  // What encloses comes before what it encloses, also where both begin in the same nanosecond.
  std::vector<std::uint32_t> order(events_.size());
  std::iota(order.begin(), order.end(), 0U);
  std::stable_sort(order.begin(), order.end(), [&](std::uint32_t left, std::uint32_t right) {
    const TraceEvent &a = events_[left], &b = events_[right];
    return std::tuple(a.track, a.begin_ns, -a.end_ns) < std::tuple(b.track, b.begin_ns, -b.end_ns);
  });
  std::string out = R"({"displayTimeUnit":"ns","otherData":{"clock":"monotonic","events":)";
  append_number(out, events_.size());
  out += R"(,"dropped":)";
  append_number(out, dropped_);
  out += "},\"traceEvents\":[\n";
  for (const auto& [track, name] : tracks_) {
    std::string json;
    append_string(json, name);
    append_metadata(out, "thread_name", track, "name", json);
    append_metadata(out, "thread_sort_index", track, "sort_index", std::to_string(track));
  }
  if (dropped_ != 0) {
    const std::string name = std::to_string(dropped_) + " events were dropped";
    const auto last = std::max_element(
        events_.begin(), events_.end(),
        [](const TraceEvent& a, const TraceEvent& b) { return a.end_ns < b.end_ns; });
    out += R"({"ph":"i","s":"p","pid":)";
    append_number(out, getpid());
    out += R"(,"tid":)";
    append_number(out, last == events_.end() ? 0 : last->track);
    out += R"(,"ts":)";
    append_us(out, last == events_.end() ? 0 : last->end_ns);
    out += R"(,"name":")" + name + "\"},\n";
  }
  for (const std::uint32_t index : order) {
    append(out, events_[index]);
    if (out.size() >= std::size_t{1} << 16) {
      sink(out);
      out.clear();
    }
  }
  append_metadata(out, "process_name", 0, "name", "\"gpupool\"");
  out.resize(out.size() - 2);  // no comma behind the last
  out += "\n]}\n";
  sink(out);
}

}  // namespace gpupool

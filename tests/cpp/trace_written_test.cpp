// A trace as it is written: every field of every kind of slice, and that all of it is JSON.
#include <unistd.h>

#include <cmath>

#include "observed_bench.h"

using namespace gpupool;

namespace {

using Kind = TraceEvent::Kind;

// Reads JSON as strictly as its grammar is: a comma too many is no JSON.
class Json {
 public:
  explicit Json(std::string_view text) : text_(text) {}
  bool is_whole() { return value() && (skip(), at_ == text_.size()); }

 private:
  void skip() { at_ = std::min(text_.find_first_not_of(" \n\t\r", at_), text_.size()); }
  bool take(char c) {
    skip();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  bool digits() {
    const std::size_t before = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    return at_ > before;
  }
  bool number() {
    if (text_[at_] == '-') ++at_;
    if (!digits()) return false;
    if (text_[at_] == '.' && (++at_, !digits())) return false;
    if (text_[at_] != 'e' && text_[at_] != 'E') return true;
    ++at_;
    if (text_[at_] == '-' || text_[at_] == '+') ++at_;
    return digits();
  }
  bool string() {
    if (!take('"')) return false;
    for (; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (static_cast<unsigned char>(c) < 0x20) return false;
      if (c == '"') return ++at_, true;
      if (c != '\\') continue;
      ++at_;
      if (text_[at_] == 'u') {
        at_ += 4;
      } else if (std::string_view(R"("\/bfnrt)").find(text_[at_]) == std::string_view::npos) {
        return false;
      }
    }
    return false;
  }
  bool list(char end, bool named) {
    if (take(end)) return true;
    do {
      if (named && !(string() && take(':'))) return false;
      if (!value()) return false;
    } while (take(','));
    return take(end);
  }
  bool value() {
    skip();
    if (at_ == text_.size()) return false;
    switch (text_[at_]) {
      case '{': return ++at_, list('}', true);
      case '[': return ++at_, list(']', false);
      case '"': return string();
      case 't': return word("true");
      case 'f': return word("false");
      case 'n': return word("null");
      default: return number();
    }
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

bool is_json(const std::string& text) { return Json(text).is_whole(); }

std::string written(Trace& trace) {
  trace.close();
  std::string json = json_of(trace);
  CHECK(is_json(json));
  return json;
}

// The line of the one event with that category.
std::string line_of(const std::string& json, const std::string& category) {
  const std::size_t at = json.find("\"cat\":\"" + category + '"');
  CHECK(at != std::string::npos);
  const std::size_t begin = json.rfind('\n', at) + 1;
  return json.substr(begin, json.find('\n', at) - begin);
}

std::string start_of(std::int32_t track) {
  return R"({"ph":"X","pid":)" + std::to_string(getpid()) + R"(,"tid":)" + std::to_string(track);
}

constexpr std::int32_t stream_track = Trace::first_stream_track;

}  // namespace

TEST(what_is_no_json_is_told_apart) {
  for (const char* right : {"{}", "[1,-2.5,1e-3]", R"({"a":[null,true,"\u0001\""]})"}) {
    CHECK(is_json(right));
  }
  for (const char* wrong : {"", "{},", "[1,]", "[,]", R"({"a":1,})", R"({"a"})", "[1 2]", "[1.]",
                            "[nan]", "[\"\n\"]", "[\"a]", "[", "[\"\\x\"]"}) {
    CHECK(!is_json(wrong));
  }
}

TEST(a_call_is_written_with_all_that_is_known_of_it) {
  Trace trace;
  trace.call({2'000, 3'500, 2'000, 0xabc0, 77, 0, 700, DriverCall::map, Kind::call});
  CHECK_EQ(line_of(written(trace), "driver"),
           start_of(gettid()) + R"(,"ts":2.000,"dur":1.500,"cat":"driver","name":"map",)" +
               R"("args":{"address":"0xabc0","bytes":77,"status":700}},)");
}

TEST(the_work_of_a_stream_is_written_with_the_time_it_was_queued) {
  Trace trace;
  trace.ran({2'000, 3'500, 1'250, 0x10, 64, stream_track, 0, DriverCall::fill, Kind::ran});
  CHECK_EQ(line_of(written(trace), "stream"),
           start_of(stream_track) + R"(,"ts":2.000,"dur":1.500,"cat":"stream","name":"fill",)" +
               R"("args":{"address":"0x10","bytes":64,"queued_us":0.750}},)");
}

TEST(what_is_not_known_is_left_out) {
  Trace calls;
  calls.call({5, 6, 5, 0, 0, 0, 0, DriverCall::page_release, Kind::call});
  CHECK_EQ(line_of(written(calls), "driver"),
           start_of(gettid()) +
               R"(,"ts":0.005,"dur":0.001,"cat":"driver","name":"page_release","args":{}},)");
  Trace streams;
  streams.ran({5, 6, 5, 0, 0, stream_track, 0, DriverCall::stream_wait_event, Kind::unfinished});
  CHECK(
      line_of(written(streams), "stream").find(R"("args":{"queued_us":0.000,"unfinished":true})") !=
      std::string::npos);
}

TEST(values_of_a_span_are_json_whatever_they_are) {
  Trace trace;
  trace.span("\x1f\"\\", 1, 2, {});
  trace.span("values", 3, 4,
             {{"nan", std::nan("")}, {"infinite", HUGE_VAL}, {"small", 1.5e-9}, {"\n", "\x7f"}});
  const std::string json = written(trace);
  CHECK(json.find(R"("name":"\u001f\"\\","args":{}})") != std::string::npos);
  CHECK(json.find(
            "\"args\":{\"nan\":null,\"infinite\":null,\"small\":1.5e-09,\"\\u000a\":\"\x7f\"}") !=
        std::string::npos);
}

TEST(a_trace_is_json_whatever_is_in_it) {
  Trace empty;
  CHECK(written(empty).find(R"("events":0,"dropped":0},"traceEvents":[)") != std::string::npos);
  for (const std::size_t capacity : {0, 1, 3}) {
    Trace full(capacity);
    const std::int32_t track = full.add_stream_track("a \"device\"\n");
    for (int i = 0; i < 5; ++i) {
      full.ran({i, i + 1, i, 0, 0, track, 0, DriverCall::fill, Kind::ran});
    }
    full.drop();
    CHECK(written(full).find(std::to_string(6 - capacity) + " events were dropped\"") !=
          std::string::npos);
  }
}

TEST(a_large_trace_is_handed_over_in_pieces_each_once) {
  Trace trace;
  constexpr int count = 5000;
  for (int i = 1; i <= count; ++i) {
    trace.ran({i, i + 1, i, 0, std::uint64_t(i), stream_track, 0, DriverCall::fill, Kind::ran});
  }
  trace.close();
  std::size_t pieces = 0;
  std::string json;
  trace.write([&](std::string_view piece) {
    CHECK(piece.size() < std::size_t{1} << 17);
    ++pieces;
    json += piece;
  });
  CHECK(pieces > 5);
  CHECK(is_json(json));
  std::size_t at = 0;
  for (int i = 1; i <= count; ++i) {  // in order, and none left out
    at = json.find("\"bytes\":" + std::to_string(i) + ',', at);
    CHECK(at != std::string::npos);
  }
  CHECK_EQ(json.find("\"bytes\":", at + 1), std::string::npos);
}

TEST(what_encloses_is_written_before_what_it_encloses) {
  Trace trace;
  trace.span("inner", 10, 20, {});
  trace.span("later", 30, 40, {});
  trace.span("outer", 10, 50, {});
  const std::string json = written(trace);
  CHECK(json.find("\"outer\"") < json.find("\"inner\""));
  CHECK(json.find("\"inner\"") < json.find("\"later\""));
}

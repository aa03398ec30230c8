// What the stand-in driver knows: devices, contexts, what belongs to them, and planned failures.
#pragma once

#include <map>
#include <mutex>
#include <set>
#include <string>

#include "driver/driver.h"
#include "standin/standin.h"

namespace gpupool::standin {

// Codes that gpupool's own list of statuses does not have.
inline constexpr int invalid_context = 201;
inline constexpr int context_is_destroyed = 709;
inline constexpr int capture_unsupported = 900;

struct Context {
  int device = -1;  // -1: not a primary context
};

// Everything the library holds. The host driver beneath is never closed while it is in use; after
// a sticky fault the end of the last context replaces it, as the end of a process would.
class State {
 public:
  static State& get();

  // Before every call: the status to answer instead of doing anything, or 0.
  int enter(const char* call, bool needs_context);
  void initialize();

  int retain(void** context, int device);
  int release(int device);
  bool retained(int device);
  int set_current(void* context);
  void* current() const;

  // The capture mode of the calling thread becomes `mode`; what it was.
  int exchange_mode(int mode);
  void begin_capture();
  bool end_capture();
  // What a call was asked for: its flags, or the like.
  void asked(const char* call, std::uint64_t what);
  std::uint64_t last_asked(const char* call);

  DriverPtr host();

  // Each keeps the books of what the host driver has done.
  struct Books {
    std::map<std::uint64_t, int> pages;  // handle -> handle types it may be exported as
    std::map<std::uint64_t, std::size_t> reservations;
    std::map<std::uint64_t, std::size_t> mappings;
    std::map<void*, std::size_t> registrations;
    std::set<StreamHandle> streams;
    std::set<EventHandle> events;
    std::uint64_t modules = 0;
  };
  template <typename Change>
  void note(Change change) {
    std::lock_guard lock(mutex_);
    change(books_);
  }

  Held held();
  std::uint64_t contexts_made();
  std::uint64_t left_behind();
  std::uint64_t calls(const char* name);
  void fail(const char* name, std::uint64_t nth, int code, bool persistent);
  std::uint64_t injected();
  const char* last_injected();
  void forget();
  void* make_context();
  void destroy_context(void* context);

 private:
  State();
  void end_of_last_context();

  std::mutex mutex_;
  bool initialized_ = false;
  DriverPtr host_;
  Books books_;
  std::set<Context*> alive_;
  Context* primary_[devices] = {};
  std::uint64_t retains_[devices] = {};
  std::uint64_t contexts_made_ = 0;
  std::uint64_t left_behind_ = 0;

  bool capturing_ = false, capture_broken_ = false;
  std::map<std::string, std::uint64_t> asked_;
  std::map<std::string, std::uint64_t> calls_;
  std::string always_failing_;
  std::string failing_;  // empty: any
  std::uint64_t nth_ = 0;
  int code_ = 0;
  bool persistent_ = false;
  std::uint64_t injected_ = 0;
  const char* last_injected_ = nullptr;
};

// cuda.h promises no flag of a descriptor that it gives: this one has none.
Status export_without_flags(Driver& host, int* fd, PageHandle page);

}  // namespace gpupool::standin

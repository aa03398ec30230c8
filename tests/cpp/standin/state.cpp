#include "standin/state.h"

#include <fcntl.h>

#include <cstdlib>
#include <numeric>
#include <string_view>
#include <utility>

#include "driver/cuda_abi.h"

namespace gpupool::standin {
namespace {

thread_local Context* current_context = nullptr;
thread_local int capture_mode = cuda::capture_mode_global;

// What a thread in its own mode may not call while another one captures: more than on a device,
// where cuda.h says of a few calls that they are unsafe.
bool unsafe(std::string_view call) {
  return call.starts_with("cuMem") || call.starts_with("cuStream") || call.starts_with("cuEvent") ||
         call == "cuDevicePrimaryCtxRetain";
}

constexpr int code(Status status) { return static_cast<int>(status); }

}  // namespace

State& State::get() {
  static State* const state = new State;  // outlives every thread, as a driver does
  return *state;
}

State::State() : host_(open_host_driver()) {
  if (const char* name = std::getenv("GPUPOOL_STANDIN_FAIL")) always_failing_ = name;
}

int State::enter(const char* call, bool needs_context) {
  std::lock_guard lock(mutex_);
  ++calls_[call];
  if (always_failing_ == call) return code(Status::no_device);
  if (nth_ > 0 && (failing_.empty() || failing_ == call)) {
    if (nth_ == 1) {
      if (!persistent_) nth_ = 0;
      ++injected_;
      last_injected_ = call;
      return code_;
    }
    --nth_;
  }
  const std::string_view name = call;
  if (name == "cuInit" || name == "cuGetErrorName") return 0;
  if (!initialized_) return code(Status::not_initialized);
  // A wait for the context is one for the stream that captures: no mode allows it.
  const bool unsafe_here = capture_mode == cuda::capture_mode_global && unsafe(name);
  if (capturing_ && (unsafe_here || name == "cuCtxSynchronize")) {
    capture_broken_ = true;
    return capture_unsupported;
  }
  if (!needs_context) return 0;
  if (current_context == nullptr) return invalid_context;
  return alive_.contains(current_context) ? 0 : context_is_destroyed;
}

void State::initialize() {
  std::lock_guard lock(mutex_);
  initialized_ = true;
}

int State::retain(void** context, int device) {
  std::lock_guard lock(mutex_);
  if (retains_[device]++ == 0) {
    primary_[device] = new Context{device};
    alive_.insert(primary_[device]);
    ++contexts_made_;
  }
  *context = primary_[device];
  return 0;
}

int State::release(int device) {
  std::lock_guard lock(mutex_);
  if (retains_[device] == 0) return invalid_context;
  if (--retains_[device] > 0) return 0;
  alive_.erase(primary_[device]);
  delete primary_[device];
  primary_[device] = nullptr;
  if (alive_.empty()) end_of_last_context();
  return 0;
}

bool State::retained(int device) {
  std::lock_guard lock(mutex_);
  return retains_[device] > 0;
}

void State::end_of_last_context() {
  left_behind_ += books_.reservations.size() + books_.mappings.size() +
                  books_.registrations.size() + books_.streams.size() + books_.events.size() +
                  books_.modules;
  for (const StreamHandle stream : books_.streams) static_cast<void>(host_->stream_destroy(stream));
  for (const EventHandle event : books_.events) static_cast<void>(host_->event_destroy(event));
  for (const auto& [memory, bytes] : books_.registrations) {
    static_cast<void>(host_->host_unregister(memory));
  }
  for (const auto& [at, bytes] : books_.mappings) static_cast<void>(host_->unmap(at, bytes));
  for (const auto& [at, bytes] : books_.reservations) {
    static_cast<void>(host_->address_free(at, bytes));
  }
  // With a sticky fault even this has another answer, and pages are gone with the rest.
  const bool broken = host_->event_query(nullptr) != Status::invalid_handle;
  std::map<std::uint64_t, int> pages;
  if (!broken) pages.swap(books_.pages);
  books_ = Books{};
  books_.pages.swap(pages);
  if (broken) host_ = open_host_driver();
}

int State::set_current(void* context) {
  std::lock_guard lock(mutex_);
  auto* const wanted = static_cast<Context*>(context);
  if (wanted != nullptr && !alive_.contains(wanted)) return invalid_context;
  current_context = wanted;
  return 0;
}

void* State::current() const { return current_context; }

int State::exchange_mode(int mode) { return std::exchange(capture_mode, mode); }

void State::begin_capture() {
  std::lock_guard lock(mutex_);
  capturing_ = true;
  capture_broken_ = false;
}

bool State::end_capture() {
  std::lock_guard lock(mutex_);
  capturing_ = false;
  return !capture_broken_;
}

void State::asked(const char* call, std::uint64_t what) {
  std::lock_guard lock(mutex_);
  asked_[call] = what;
}

std::uint64_t State::last_asked(const char* call) {
  std::lock_guard lock(mutex_);
  return asked_.at(call);
}

Status export_without_flags(Driver& host, int* fd, PageHandle page) {
  const Status status = host.page_export(fd, page);
  if (status == Status::success) fcntl(*fd, F_SETFD, 0);
  return status;
}

DriverPtr State::host() {
  std::lock_guard lock(mutex_);
  return host_;
}

Held State::held() {
  std::lock_guard lock(mutex_);
  return {.contexts = alive_.size(),
          .retains = std::accumulate(std::begin(retains_), std::end(retains_), std::uint64_t{0}),
          .pages = books_.pages.size(),
          .reservations = books_.reservations.size(),
          .mappings = books_.mappings.size(),
          .registrations = books_.registrations.size(),
          .streams = books_.streams.size(),
          .events = books_.events.size(),
          .modules = books_.modules};
}

std::uint64_t State::contexts_made() {
  std::lock_guard lock(mutex_);
  return contexts_made_;
}

std::uint64_t State::left_behind() {
  std::lock_guard lock(mutex_);
  return left_behind_;
}

std::uint64_t State::calls(const char* name) {
  std::lock_guard lock(mutex_);
  const auto it = calls_.find(name);
  return it == calls_.end() ? 0 : it->second;
}

void State::fail(const char* name, std::uint64_t nth, int code, bool persistent) {
  std::lock_guard lock(mutex_);
  failing_ = name == nullptr ? "" : name;
  nth_ = nth;
  code_ = code;
  persistent_ = persistent;
  injected_ = 0;
  last_injected_ = nullptr;
}

std::uint64_t State::injected() {
  std::lock_guard lock(mutex_);
  return injected_;
}

const char* State::last_injected() {
  std::lock_guard lock(mutex_);
  return last_injected_;
}

void State::forget() {
  std::lock_guard lock(mutex_);
  for (Context* context : alive_) delete context;
  alive_.clear();
  for (int device = 0; device < devices; ++device) {
    primary_[device] = nullptr;
    retains_[device] = 0;
  }
  current_context = nullptr;
  capture_mode = cuda::capture_mode_global;
  nth_ = 0;
  books_ = Books{};
  host_ = open_host_driver();
}

void* State::make_context() {
  std::lock_guard lock(mutex_);
  return *alive_.insert(new Context).first;
}

void State::destroy_context(void* context) {
  std::lock_guard lock(mutex_);
  auto* const gone = static_cast<Context*>(context);
  if (alive_.erase(gone) == 1) delete gone;
}

}  // namespace gpupool::standin

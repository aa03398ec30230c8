#include "driver/observe.h"

#include <tuple>
#include <utility>

#include "driver/operands.h"

namespace gpupool {
namespace {

constexpr auto relaxed = std::memory_order_relaxed;

constexpr bool waits_for_all(DriverCall call) { return call == DriverCall::context_synchronize; }
constexpr bool waits(DriverCall call) {
  return call == DriverCall::stream_synchronize || waits_for_all(call);
}
// Work of a stream that takes time there; waiting for another stream does too.
constexpr bool puts_work(DriverCall call) {
  return call == DriverCall::copy_to_device || call == DriverCall::copy_to_host ||
         call == DriverCall::copy_batch_to_device || call == DriverCall::copy_batch_to_host ||
         call == DriverCall::fill || call == DriverCall::digest ||
         call == DriverCall::digest_runs || call == DriverCall::copy_to_device_digest ||
         call == DriverCall::stream_wait_event;
}

}  // namespace

class ObservedDriver final : public Driver {
 public:
  ObservedDriver(DriverPtr inner, std::shared_ptr<Observer> observer, WatchMode mode)
      : inner_(std::move(inner)), observer_(std::move(observer)), watcher_(*inner_, mode) {
    observer_->attach(&watcher_);
  }
  ~ObservedDriver() override { observer_->detach(); }

#define GPUPOOL_OBSERVE(name, params, args, needs_context)                                        \
  Status name params noexcept override {                                                          \
    return run<DriverCall::name>([&] { return inner_->name args; },                               \
                                 [&](bool made) {                                                 \
                                   return std::apply(                                             \
                                       [&](auto... a) { return operands_of_##name(made, a...); }, \
                                       std::tuple args);                                          \
                                 });                                                              \
  }
  GPUPOOL_DRIVER_CALLS(GPUPOOL_OBSERVE)
#undef GPUPOOL_OBSERVE

  std::int64_t now_ns() const noexcept override { return inner_->now_ns(); }
  DeviceKind kind() const noexcept override { return inner_->kind(); }
  int ordinal() const noexcept override { return inner_->ordinal(); }
  std::string status_name(Status status) const override { return inner_->status_name(status); }

  const std::shared_ptr<Observer>& observer() const noexcept { return observer_; }

 private:
  using Registrations = std::map<std::uint64_t, std::uint64_t>;  // address -> bytes

  template <DriverCall call, typename Make, typename Look>
  Status run(Make make, Look look) noexcept {
    const bool traced = observer_->tracing();
    // Before the call, since memory and handles may be somebody else's as soon as it is made.
    [[maybe_unused]] Registrations::node_type registration;
    [[maybe_unused]] std::int32_t track = 0;
    [[maybe_unused]] std::uint64_t sequence = 0;
    if constexpr (call == DriverCall::host_unregister) registration = take(look(false).address);
    if constexpr (call == DriverCall::stream_destroy) {
      if (traced) track = watcher_.forget(look(false).stream);
    }
    if constexpr (waits(call)) {
      if (traced) sequence = watcher_.sequence();
    }

    const std::int64_t begin_ns = inner_->now_ns();
    const Status status = make();
    std::int64_t end_ns = inner_->now_ns();

    const bool made = status == Status::success;
    const Operands operands = look(made);
    if constexpr (waits(call)) {
      if (traced && made) {
        end_ns = watcher_.settle(waits_for_all(call) ? nullptr : &operands.stream, sequence);
      }
    }
    Observer::Count& count = observer_->calls_[static_cast<std::size_t>(call)];
    count.calls.fetch_add(1, relaxed);
    count.ns.fetch_add(static_cast<std::uint64_t>(end_ns - begin_ns), relaxed);
    if (!made && status != Status::not_ready) count.failures.fetch_add(1, relaxed);
    if constexpr (call == DriverCall::host_unregister) {
      note_unregistered(made, std::move(registration));
    } else if (made) {
      note<call>(operands);
    }
    if (traced) {
      if constexpr (call == DriverCall::stream_destroy) {
        if (!made) watcher_.remember(track);
      }
      if constexpr (puts_work(call)) {
        if (made) {
          watcher_.enqueued(call, operands.stream, begin_ns, operands.address, operands.bytes);
        }
      }
      watcher_.after_call();
      if (const auto trace = observer_->trace()) {
        trace->call({begin_ns, end_ns, begin_ns, operands.address, operands.bytes, 0,
                     static_cast<std::int32_t>(status), call, TraceEvent::Kind::call});
      }
    }
    return status;
  }

  template <DriverCall call>
  void note(const Operands& operands) noexcept {
    Observer& o = *observer_;
    switch (call) {
      case DriverCall::copy_to_device_digest:
        o.digested_bytes_.fetch_add(operands.bytes, relaxed);
        [[fallthrough]];
      case DriverCall::copy_batch_to_device:
      case DriverCall::copy_to_device: o.to_device_bytes_.fetch_add(operands.bytes, relaxed); break;
      case DriverCall::copy_batch_to_host:
      case DriverCall::copy_to_host: o.to_host_bytes_.fetch_add(operands.bytes, relaxed); break;
      case DriverCall::digest_runs:
      case DriverCall::digest: o.digested_bytes_.fetch_add(operands.bytes, relaxed); break;
      case DriverCall::fill: o.filled_bytes_.fetch_add(operands.bytes, relaxed); break;
      case DriverCall::page_create:
      case DriverCall::page_import: o.pages_.fetch_add(1, relaxed); break;
      case DriverCall::page_release: o.pages_.fetch_sub(1, relaxed); break;
      case DriverCall::address_reserve: o.reserved_bytes_.fetch_add(operands.bytes, relaxed); break;
      case DriverCall::address_free: o.reserved_bytes_.fetch_sub(operands.bytes, relaxed); break;
      case DriverCall::map: o.mapped_bytes_.fetch_add(operands.bytes, relaxed); break;
      case DriverCall::unmap: o.mapped_bytes_.fetch_sub(operands.bytes, relaxed); break;
      case DriverCall::host_register: note_registered(operands); break;
      case DriverCall::stream_create: o.streams_.fetch_add(1, relaxed); break;
      case DriverCall::stream_destroy: o.streams_.fetch_sub(1, relaxed); break;
      case DriverCall::event_create: o.events_.fetch_add(1, relaxed); break;
      case DriverCall::event_destroy: o.events_.fetch_sub(1, relaxed); break;
      default: break;
    }
  }

  Registrations::node_type take(std::uint64_t memory) noexcept {
    std::lock_guard lock(mutex_);
    return registrations_.extract(memory);
  }
  void note_registered(const Operands& operands) noexcept {
    std::lock_guard lock(mutex_);
    try {
      registrations_.emplace(operands.address, operands.bytes);
    } catch (const std::bad_alloc&) {
      return;  // neither counted now nor taken off later
    }
    observer_->registered_bytes_.fetch_add(operands.bytes, relaxed);
  }
  void note_unregistered(bool made, Registrations::node_type registration) noexcept {
    if (!registration) return;
    if (made) {
      observer_->registered_bytes_.fetch_sub(registration.mapped(), relaxed);
    } else {
      std::lock_guard lock(mutex_);
      registrations_.insert(std::move(registration));
    }
  }

  DriverPtr inner_;
  std::shared_ptr<Observer> observer_;
  std::mutex mutex_;
  Registrations registrations_;
  Watcher watcher_;  // goes before the driver that it asks
};

DriverStatistics Observer::statistics() const noexcept {
  DriverStatistics statistics;
  for (std::size_t i = 0; i < calls_.size(); ++i) {
    const Count& count = calls_[i];
    statistics.calls[i] = {count.calls.load(relaxed), count.failures.load(relaxed),
                           count.ns.load(relaxed)};
  }
#define GPUPOOL_AMOUNT(name) statistics.name = name##_.load(relaxed);
  GPUPOOL_OBSERVED_AMOUNTS(GPUPOOL_AMOUNT)
#undef GPUPOOL_AMOUNT
  return statistics;
}

void Observer::attach(Watcher* watcher) {
  std::lock_guard lock(switching_);
  if (used_) throw UsageError("an observer is of one driver");
  used_ = true;
  watcher_ = watcher;
}

void Observer::detach() noexcept {
  stop();
  if (fork_count() != forks_) return;
  std::lock_guard lock(switching_);
  watcher_ = nullptr;
}

void Observer::start(std::shared_ptr<Trace> trace) {
  if (fork_count() != forks_) throw UsageError("the device was opened before a fork");
  std::lock_guard lock(switching_);
  if (watcher_ == nullptr) throw UsageError("the device is closed");
  if (tracing()) throw UsageError("the device is being traced already");
  watcher_->begin(trace);
  std::lock_guard held(mutex_);
  trace_ = std::move(trace);
  tracing_ = true;
}

void Observer::stop() noexcept {
  tracing_ = false;
  if (fork_count() != forks_) return;
  std::lock_guard lock(switching_);
  if (watcher_ != nullptr) watcher_->end();
  std::lock_guard held(mutex_);
  trace_.reset();
}

std::shared_ptr<Trace> Observer::trace() const noexcept {
  if (fork_count() != forks_) return nullptr;
  std::lock_guard lock(mutex_);
  return trace_;
}

void Observer::span(std::string_view name, std::int64_t begin_ns, std::int64_t end_ns,
                    const Trace::Values& values) noexcept {
  if (!tracing()) return;
  if (const auto held = trace()) held->span(name, begin_ns, end_ns, values);
}

DriverPtr with_observer(DriverPtr inner, std::shared_ptr<Observer> observer, WatchMode mode) {
  return std::make_shared<ObservedDriver>(std::move(inner), std::move(observer), mode);
}

std::shared_ptr<Observer> observer_of(const Driver& driver) {
  const auto* observed = dynamic_cast<const ObservedDriver*>(&driver);
  return observed == nullptr ? nullptr : observed->observer();
}

}  // namespace gpupool

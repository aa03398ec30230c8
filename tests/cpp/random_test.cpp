// Random operations against a plain model: 100,000 for each of GPUPOOL_RANDOM_SEEDS seeds (10 by
// default) from GPUPOOL_RANDOM_SEED on. A failure prints its seed and the line that replays it.
#include "random_world.h"

#include <cstdio>

using namespace gpupool;

namespace {

constexpr std::uint64_t operations_per_seed = 100'000;

struct Totals {
  std::array<std::uint64_t, RandomWorld::kinds> done{};
  std::uint64_t injected = 0;
};

void run_seed(std::uint64_t seed, const RandomWorld::Wrap& wrap, Totals* totals) {
  std::uint64_t n = 0;
  try {
    RandomWorld world(seed, wrap);
    for (; n < operations_per_seed; ++n) world.step();
    world.finish();
    if (totals == nullptr) return;
    for (std::size_t i = 0; i < RandomWorld::kinds; ++i) totals->done[i] += world.done[i];
    totals->injected += world.injected;
  } catch (const std::exception& error) {
    check::fail(__FILE__, __LINE__,
                "seed " + std::to_string(seed) + ", operation " + std::to_string(n) + ": " +
                    error.what() + "\n        replay: GPUPOOL_RANDOM_SEED=" + std::to_string(seed) +
                    " GPUPOOL_RANDOM_SEEDS=1 build/cpp/tests/cpp/random_test");
  }
}

// Passes everything on, except what a bug planted in it changes, once in a while.
class Planted : public Driver {
 public:
  explicit Planted(DriverPtr inner) : inner_(std::move(inner)) {}
#define GPUPOOL_PASS_ON(name, params, args, needs_context) \
  Status name params noexcept override { return inner_->name args; }
  GPUPOOL_DRIVER_CALLS(GPUPOOL_PASS_ON)
#undef GPUPOOL_PASS_ON
  std::int64_t now_ns() const noexcept override { return inner_->now_ns(); }
  DeviceKind kind() const noexcept override { return inner_->kind(); }
  int ordinal() const noexcept override { return inner_->ordinal(); }

 protected:
  bool now() { return ++calls_ % 100 == 0; }
  const DriverPtr inner_;

 private:
  std::uint64_t calls_ = 0;
};

struct WrongPage : Planted {
  using Planted::Planted;
  Status map(DevicePtr address, std::size_t bytes, PageHandle page) noexcept override {
    const PageHandle told = std::exchange(last_, page);
    return Planted::map(address, bytes, now() && told != 0 ? told : page);
  }
  PageHandle last_ = 0;
};
struct ShortFill : Planted {
  using Planted::Planted;
  Status fill(DevicePtr to, std::uint8_t value, std::size_t bytes,
              StreamHandle stream) noexcept override {
    return Planted::fill(to, value, now() && bytes > 1 ? bytes - 1 : bytes, stream);
  }
};
struct ShiftedCopy : Planted {
  using Planted::Planted;
  Status copy_to_device(DevicePtr to, const void* from, std::size_t bytes,
                        StreamHandle stream) noexcept override {
    const bool shift = now() && bytes > 8;
    return Planted::copy_to_device(to + (shift ? 8 : 0), from, bytes - (shift ? 8 : 0), stream);
  }
  // Its digest is that of the page, as it was before.
  Status copy_to_device_digest(DevicePtr to, const void* from, std::size_t bytes,
                               std::uint64_t* sums, StreamHandle stream) noexcept override {
    if (!now()) return Planted::copy_to_device_digest(to, from, bytes, sums, stream);
    const Status status = Planted::copy_to_device_digest(to, from, bytes, sums, stream);
    return status != Status::success || bytes <= 8
               ? status
               : Planted::copy_to_device(to + 8, from, bytes - 8, stream);
  }
};
struct LostWait : Planted {
  using Planted::Planted;
  Status stream_synchronize(StreamHandle stream) noexcept override {
    return now() ? Status::success : Planted::stream_synchronize(stream);
  }
};
struct LostUnmap : Planted {
  using Planted::Planted;
  Status unmap(DevicePtr address, std::size_t bytes) noexcept override {
    return now() ? Status::success : Planted::unmap(address, bytes);
  }
};

template <typename Bug>
void must_be_caught(const char* name) {
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    try {
      run_seed(
          seed, [](DriverPtr inner) { return std::make_shared<Bug>(std::move(inner)); }, nullptr);
    } catch (const check::Failure& failure) {
      const std::string what = failure.what();
      std::printf("        %s: %s\n", name, what.substr(0, what.find('\n')).c_str());
      continue;
    }
    check::fail(__FILE__, __LINE__, std::string(name) + " was not caught");
  }
}

}  // namespace

TEST(random_operations_do_what_the_plain_model_says) {
  const std::uint64_t first = std::stoull(setting("GPUPOOL_RANDOM_SEED", "1"));
  const std::uint64_t seeds = std::stoull(setting("GPUPOOL_RANDOM_SEEDS", "10"));
  Totals totals;
  for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
    run_seed(seed, nullptr, &totals);
    if ((seed - first + 1) % 100 == 0) {
      std::printf("        %llu seeds\n", static_cast<unsigned long long>(seed - first + 1));
      std::fflush(stdout);
    }
  }
  for (std::size_t i = 0; i < RandomWorld::kinds; ++i) {
    std::printf("        %-10s %llu\n", RandomWorld::operations[i],
                static_cast<unsigned long long>(totals.done[i]));
  }
  std::printf("        operations=%llu seeds=%llu injected=%llu\n",
              static_cast<unsigned long long>(seeds * operations_per_seed),
              static_cast<unsigned long long>(seeds),
              static_cast<unsigned long long>(totals.injected));
}

// Bugs that the plain model has to notice, or it is no use.
TEST(planted_bugs_are_caught) {
  must_be_caught<WrongPage>("a wrong page mapped");
  must_be_caught<ShortFill>("a fill short of one byte");
  must_be_caught<ShiftedCopy>("a copy shifted by a word");
  must_be_caught<LostWait>("a wait that does not wait");
  must_be_caught<LostUnmap>("an unmap that does nothing");
}

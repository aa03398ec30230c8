// Models that share a stepped device of small pages, with compute streams that read and write their
// regions as a step does. Every word a kernel reads is compared with what it should be.
#pragma once

#include <cstring>
#include <string>

#include "bench.h"
#include "driver/fault.h"
#include "driver/host_ops.h"
#include "memory/memory.h"
#include "swap/swap.h"

namespace gpupool {

inline constexpr std::size_t small_page = 4096;
using Words = std::vector<std::uint64_t>;

// Runs `body(seed)`; a failure names the seed.
template <typename Body>
void for_schedules(std::uint64_t count, Body body) {
  for (std::uint64_t seed = 0; seed < count; ++seed) {
    try {
      body(seed);
    } catch (const std::exception& error) {
      check::fail(__FILE__, __LINE__, "schedule " + std::to_string(seed) + ": " + error.what());
    }
  }
}

struct SteppedMachine {
  using Wrap = std::function<DriverPtr(DriverPtr)>;
  // `wrap` may put a driver of its own between the device and what is tested.
  SteppedMachine(std::uint64_t seed, std::size_t pages, const Wrap& wrap = nullptr)
      : device(host_device(open_stepped(seed, small_page))),
        faulty(with_faults(wrap ? wrap(device) : device, plan)),
        pool(faulty, pages * small_page, small_page),
        random(~seed) {}

  std::shared_ptr<host::HostDriver> device;
  std::shared_ptr<FaultPlan> plan = std::make_shared<FaultPlan>();
  DriverPtr faulty;
  PagePool pool;
  host::Random random;  // of what is done; when it runs is the device's own draw
  std::string wrong;    // the first word that a kernel found stale or torn
};

class SteppedModel {
 public:
  static constexpr std::size_t pages = 7;
  // Copies are cut so that borders of chunks, pages and regions do not meet.
  SteppedModel(SteppedMachine& machine, OwnerId owner)
      : machine_(machine),
        owner_(owner),
        memory_(new ModelMemory(machine.faulty, small_page, 1504, 1 + machine.random.below(3),
                                static_cast<Verify>(machine.random.below(3)))) {
    add(Tag::weights, 2 * small_page - 800);
    add(Tag::runtime, 1000);
    add(Tag::kv_cache, 3 * small_page);
    add(Tag::workspace, small_page - 8);
    CHECK_OK(machine.device->stream_create(&compute_));
  }
  ~SteppedModel() {
    machine_.plan->disarm();
    static_cast<void>(machine_.device->stream_synchronize(compute_));
    static_cast<void>(machine_.device->stream_destroy(compute_));
    memory_.reset();
    machine_.pool.give_back_all(owner_);
  }
  SteppedModel(const SteppedModel&) = delete;
  SteppedModel& operator=(const SteppedModel&) = delete;

  ModelMemory& memory() { return *memory_; }
  bool resident() const { return memory_->resident(); }

  SwapReport swap_in() {
    std::size_t clean = 0;
    auto pages = take(memory_->pages_needed() - memory_->warm_pages(), clean);
    try {
      return memory_->swap_in(std::move(pages), clean);
    } catch (...) {
      if (!memory_->torn()) give_back_unmapped();
      throw;
    }
  }
  // Some pages come ahead of the rest.
  void warm(std::size_t count) {
    std::size_t clean = 0;
    auto pages = take(count, clean);
    try {
      memory_->warm(std::move(pages), clean);
    } catch (...) {
      if (!memory_->torn()) give_back_unmapped();
      throw;
    }
  }
  void cool(std::size_t count) {
    CHECK_EQ(memory_->cool(count).size(), count);
    give_back_unmapped();
  }
  // All but the first `keep` pages go.
  SwapReport swap_out(std::size_t keep = 0, bool in_parts = false) {
    finish_step();
    return swap_out_at_once(keep, in_parts);
  }
  SwapReport swap_out_at_once(std::size_t keep = 0, bool in_parts = false) {
    while (in_parts && !memory_->drain(keep).empty()) give_back_unmapped();
    const SwapReport report = memory_->swap_out(keep);
    give_back_unmapped();
    content_[3].assign(content_[3].size(), 0);  // the workspace is not kept
    return report;
  }
  void end() { memory_.reset(); }
  // Gives its KV cache another size, with new pages where it needs them.
  void resize_kv(std::size_t bytes) {
    const RegionPtr& kv = regions_[2];
    const std::size_t had = kv->span_bytes() / small_page;
    const std::size_t needs = (bytes + small_page - 1) / small_page;
    std::vector<PagePtr> more;
    std::size_t clean = 0;
    if (resident() && needs > had) {
      for (const PageId id : machine_.pool.acquire(owner_, needs - had)) {
        more.push_back(machine_.pool.page(id));
        clean += machine_.pool.is_clean(id);
      }
    }
    try {
      give_back(memory_->resize(*kv, bytes, more, clean, -1));
    } catch (...) {
      // What could not be unmapped again stays the model's until it leaves.
      if (memory_->mapped_pages(*kv).size() <= had) give_back(more);
      throw;
    }
    content_[2].resize(kv->bytes() / 8, 0);
    content_[2].resize(kv->span_bytes() / 8, 0);
    if (!resident()) return;
    // What a shrunk region leaves in its last page is nobody's business; here it is compared.
    CHECK_OK(machine_.device->launch(
        compute_, {{kv->address(), kv->span_bytes()}},
        [first = kv->address() + kv->bytes(), bytes = kv->span_bytes() - kv->bytes()] {
          std::memset(reinterpret_cast<void*>(first), 0, bytes);
        }));
  }

  // A kernel that reads every word of every region. It runs some time before the step ends.
  void read() {
    for (std::size_t i = 0; i < regions_.size(); ++i) {
      const DevicePtr base = regions_[i]->address();
      CHECK_OK(machine_.device->launch(compute_, {{base, regions_[i]->span_bytes()}},
                                       [this, i, base, words = content_[i]] {
                                         compare(i, reinterpret_cast<std::uint64_t*>(base), words);
                                       }));
    }
  }
  // A kernel that stamps a run of words with the owner and a generation that never comes again.
  void write() {
    const std::size_t i = machine_.random.below(regions_.size());
    Words& words = content_[i];
    const std::size_t count = regions_[i]->bytes() / 8, begin = machine_.random.below(count);
    const std::size_t end = begin + 1 + machine_.random.below(count - begin);
    const std::uint64_t stamp = owner_ << 48 | ++generation_;
    std::fill(words.begin() + begin, words.begin() + end, stamp);
    const DevicePtr base = regions_[i]->address();
    CHECK_OK(machine_.device->launch(compute_, {{base, regions_[i]->span_bytes()}}, [=] {
      auto* first = reinterpret_cast<std::uint64_t*>(base);
      std::fill(first + begin, first + end, stamp);
    }));
    const Tag tag = regions_[i]->tag();
    if (tag == Tag::weights || tag == Tag::kv_cache) {
      memory_->mark_written(*regions_[i], {{8 * begin, 8 * end}});
    }
  }
  void finish_step() { CHECK_OK(machine_.device->stream_synchronize(compute_)); }

 private:
  std::vector<PagePtr> take(std::size_t count, std::size_t& clean) {
    std::vector<PagePtr> pages;
    for (const PageId id : machine_.pool.acquire(owner_, count)) {
      pages.push_back(machine_.pool.page(id));
      clean += machine_.pool.is_clean(id);  // which come first
    }
    return pages;
  }
  void give_back_unmapped() {
    std::vector<PageId> gone = machine_.pool.owned(owner_);
    for (const RegionPtr& region : regions_) {
      for (const PagePtr& page : memory_->mapped_pages(*region)) {
        std::erase_if(gone, [&](PageId id) { return machine_.pool.page(id) == page; });
      }
    }
    machine_.pool.give_back(owner_, gone);
  }
  void give_back(const std::vector<PagePtr>& gone) {
    std::vector<PageId> ids;
    for (const PageId id : machine_.pool.owned(owner_)) {
      if (std::count(gone.begin(), gone.end(), machine_.pool.page(id)) > 0) ids.push_back(id);
    }
    machine_.pool.give_back(owner_, ids);
  }
  void add(Tag tag, std::size_t bytes) {
    regions_.push_back(memory_->add_region(tag, bytes, -1, 2 * bytes));
    content_.push_back(Words(regions_.back()->span_bytes() / 8, 0));
  }
  void compare(std::size_t region, const std::uint64_t* seen, const Words& words) {
    if (std::memcmp(seen, words.data(), words.size() * 8) == 0 || !machine_.wrong.empty()) return;
    std::size_t at = 0;
    while (seen[at] == words[at]) ++at;
    machine_.wrong = "model " + std::to_string(owner_) + ", region " + std::to_string(region) +
                     ", word " + std::to_string(at) + " is " + std::to_string(seen[at]) + ", not " +
                     std::to_string(words[at]);
  }

  SteppedMachine& machine_;
  OwnerId owner_;
  std::unique_ptr<ModelMemory> memory_;
  StreamHandle compute_ = nullptr;
  std::vector<RegionPtr> regions_;
  std::vector<Words> content_;  // to the end of the last page, where zeros are
  std::uint64_t generation_ = 0;
};

}  // namespace gpupool

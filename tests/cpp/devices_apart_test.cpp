// Each device has its own streams and locks: one that stands still holds up no other.
#include <latch>
#include <thread>

#include "hooked.h"
#include "model_bench.h"

using namespace gpupool;

namespace {

// A model on a device of its own, out.
struct Device {
  explicit Device(std::uint64_t seed)
      : hooked(std::make_shared<Hooked>(machine.faulty)),
        pool(hooked, 4 * page_bytes, page_bytes),
        memory(hooked, page_bytes, mib),
        weights(memory.add_region(Tag::weights, 3 * page_bytes, -1)),
        content(pattern(seed, weights->bytes())) {
    std::memcpy(weights->image(), content.data(), content.size());
    memory.adopt_image(*weights);
    for (const PageId id : pool.acquire(1, memory.pages_needed())) pages.push_back(pool.page(id));
  }
  void in() { memory.swap_in(pages); }
  // With a change, so that it copies.
  void out() {
    content[page_bytes] ^= 1;
    machine.bench.write(weights->address() + page_bytes, {content[page_bytes]});
    memory.mark_written(*weights, {{page_bytes, page_bytes + 1}});
    CHECK_EQ(memory.swap_out().copied_bytes, 1);
  }
  void check_content() {
    CHECK(machine.bench.read(weights->address(), weights->bytes()) == content);
  }

  Machine machine{1};
  std::shared_ptr<Hooked> hooked;
  PagePool pool;
  ModelMemory memory;
  RegionPtr weights;
  Bytes content;
  std::vector<PagePtr> pages;
};

}  // namespace

TEST(a_device_that_stands_still_holds_up_no_other) {
  for (const DriverCall stuck :
       {DriverCall::map, DriverCall::copy_to_device_digest, DriverCall::stream_synchronize,
        DriverCall::digest, DriverCall::copy_to_host, DriverCall::unmap}) {
    Device still(1), other(2);
    std::latch inside(1), go_on(1);
    still.hooked->before = [&, stands = false](DriverCall call) mutable {
      if (call != stuck || std::exchange(stands, true)) return;
      inside.count_down();
      go_on.wait();
    };
    std::jthread swapping([&] {
      still.in();
      still.out();
    });
    inside.wait();
    for (int round = 0; round < 3; ++round) {
      other.in();
      other.check_content();
      other.out();
    }
    go_on.count_down();
    swapping.join();
    still.hooked->before = [](DriverCall) {};
    still.in();
    still.check_content();
  }
}

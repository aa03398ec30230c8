// Scenarios of models that come, go and change.
#include <fcntl.h>
#include <sys/mman.h>

#include "fault_blocks.h"
#include "fault_runner.h"
#include "fault_shared.h"

namespace gpupool {
namespace {

void kept(World& w) {
  written(w);
  w.a->swap_out(2);
}

// Asked for when so many copies have been enqueued, by the driver beneath the faults.
template <int copies_before>
void swap_in_cancelled_at(World& w) {
  struct Asking {
    explicit Asking(Hooked& h) : hooked(h) {
      if (copies_before == 0) stop.request_stop();
      hooked.before = [this](DriverCall call) {
        if (call == DriverCall::copy_to_device_digest && ++copies == copies_before)
          stop.request_stop();
      };
    }
    ~Asking() {
      hooked.before = [](DriverCall) {};
    }
    Hooked& hooked;
    std::stop_source stop;
    int copies = 0;
  } asking(*w.hooked);
  try {
    w.a->swap_in(asking.stop.get_token());
  } catch (const Cancelled&) {
    CHECK_EQ(asking.copies, copies_before);
  }
}

// Two regions whose images a scenario has copies of.
const std::size_t parkable[] = {0, 2};

std::vector<RegionPtr> park_of(const World& w) {
  std::vector<RegionPtr> regions;
  for (const std::size_t i : parkable) regions.push_back(w.a->regions[i]);
  return regions;
}

void park(World& w) {
  std::vector<std::uint64_t> changes;
  for (const RegionPtr& region : park_of(w)) changes.push_back(region->image_changes());
  w.a->memory.park(park_of(w), changes);
}

void unpark(World& w) {
  std::vector<std::shared_ptr<HostMemory>> images;
  for (const std::size_t i : parkable) {
    images.push_back(w.a->memory.make_image(*w.a->regions[i], -1));
    for (const auto& [at, value] : w.a->expected[i]) {
      if (at < w.a->regions[i]->bytes())
        std::memcpy(images.back()->data() + at, &value, sizeof value);
    }
  }
  w.a->memory.unpark(park_of(w), images);
}

void parked(World& w) {
  saved(w);
  park(w);
}

const auto comes_back = [](World& w, bool) {
  if (w.a->regions[0]->parked()) unpark(w);
  w.a->swap_in();
  w.a->check_content();
  w.a->swap_out();
};

const auto is_out = [](World& w, bool) { CHECK(!w.a->memory.resident()); };

const Ended a_model{3, 3, 2}, a_warm_model{2, 1, 1};

const Scenario scenarios[] = {
    {"a new model", nothing, [](World& w) { ModelMemory(w.driver, page_bytes, mib); }},
    {"a region is added", nothing, [](World& w) { w.a->memory.add_region(Tag::weights, mib, -1); }},
    {"a workspace is added", saved,
     [](World& w) { w.a->memory.add_region(Tag::workspace, page_bytes + 1, -1); }},
    {"a KV cache without an image is added", saved,
     [](World& w) { w.a->memory.add_region(Tag::kv_cache, page_bytes + 1, std::nullopt); }},
    {"a region over a file is added", nothing,
     [](World& w) {
       const Fd fd{memfd_create("image", MFD_CLOEXEC)};
       CHECK_EQ(ftruncate(fd.fd, mib), 0);
       w.a->memory.add_region(Tag::cudagraph, mib, fd.fd);
     }},
    {"fill a fresh model", nothing, resident},
    {"swap in what was saved", saved, [](World& w) { w.a->swap_in(); }},
    {"swap out what was written", written, [](World& w) { w.a->swap_out(); }},
    {"swap out in parts", written, [](World& w) { w.a->swap_out(0, true); }},
    {"swap out in parts of which some stay", written, [](World& w) { w.a->swap_out(2, true); }},
    {"swap out what was not", [](World& w) { saved(w), w.a->swap_in(); },
     [](World& w) { w.a->swap_out(); }},
    {"swap out what is written beside what is saved",
     [](World& w) {
       saved(w);
       w.a->swap_in();
       // A run that grows over several that were saved.
       w.a->memory.mark_written(*w.a->regions[1], {{4, 2052}});
     },
     [](World& w) { w.a->swap_out(); }},
    {"mark what is written", resident,
     [](World& w) { w.a->memory.mark_written(*w.a->regions[0], {{0, 16}, {32, 64}, {8, 40}}); }},
    {"adopt an image",
     [](World& w) { w.a->load(0, 300); },
     [](World& w) { w.a->memory.adopt_image(*w.a->regions[0]); },
     {},
     [](World& w, bool failed) {
       w.a->swap_in();
       if (failed) {
         w.a->write_unmarked(0, 400);  // weights as fresh as before, saved without a mark
       } else {
         w.a->check_content();
         w.a->write(400);
       }
       w.a->swap_out();
       w.a->swap_in();
       w.a->check_content();
       w.a->swap_out();
     }},
    {"in and out", saved,
     [](World& w) {
       w.a->swap_in();
       w.a->swap_out();
     }},
    {"hand over to another model", written,
     [](World& w) {
       w.a->swap_out();
       w.b->swap_in();
     }},
    {"finish a torn swap",
     [](World& w) {
       saved(w);
       w.plan->arm(4, Status::unknown, true);
       CHECK_THROWS(DriverError, w.a->swap_in());
       w.plan->disarm();
       CHECK(w.a->memory.torn());
     },
     [](World& w) { w.a->swap_out(); }},
    {"a region grows while its model is out", saved,
     [](World& w) { w.a->resize(1, 2 * page_bytes + 5); }},
    {"a region shrinks while its model is out", saved, [](World& w) { w.a->resize(0, 4096); }},
    {"a resident region grows into new pages", written,
     [](World& w) { w.a->resize(1, 2 * page_bytes + 5); }},
    {"a resident region grows within its page", written, [](World& w) { w.a->resize(2, 9000); }},
    {"a resident region shrinks", written, [](World& w) { w.a->resize(0, 4096); }},
    {"a swap-in is cancelled before its first copy", saved, swap_in_cancelled_at<0>, {}, is_out},
    {"a swap-in is cancelled at its first copy", saved, swap_in_cancelled_at<1>, {}, is_out},
    {"a swap-in is cancelled with two copies in flight",
     saved,
     swap_in_cancelled_at<2>,
     {},
     is_out},
    {"a swap-in is cancelled when one copy has ended", saved, swap_in_cancelled_at<3>, {}, is_out},
    {"a swap-in is cancelled in its second region", saved, swap_in_cancelled_at<6>, {}, is_out},
    {"what verifies nothing comes in",
     [](World& w) {
       w.b->load(0, 7);
       w.b->memory.adopt_image(*w.b->regions[0]);
     },
     [](World& w) { w.b->swap_in(); }},
    {"a swap-in could be cancelled", saved,
     [](World& w) { w.a->swap_in(std::stop_source().get_token()); }},
    {"a sealed model comes in",
     [](World& w) { sealed(w, w.b); },
     [](World& w) { w.a->swap_in(); },
     {},
     unsealed},
    {"a model comes in on a page of another's",
     [](World& w) { sealed(w, w.b); },
     [](World& w) { come_shared(w, w.b, w.a, false); },
     {},
     unsealed},
    {"pages come ahead beside one of another's",
     [](World& w) { sealed(w, w.b); },
     [](World& w) { come_shared(w, w.b, w.a, true); },
     {},
     unsealed},
    {"who had a page first leaves it to the other",
     both_have_it,
     [](World& w) { w.a->swap_out(); },
     {},
     unsealed},
    {"a sealed model leaves some pages",
     both_have_it,
     [](World& w) { w.b->swap_out(1); },
     {},
     unsealed},
    {"an image is replaced", saved, replace_image},
    {"a region that is shared out grows", written, use_arena, {}, check_arena},
    {"close a model that is out", saved, [](World& w) { w.a.reset(); }},
    {"close a model that is resident", written, [](World& w) { w.a.reset(); }, a_model},
    {"close a model whose region is kept",
     [](World& w) {
       written(w);
       w.made.push_back(w.a->regions[0]);
     },
     [](World& w) { w.a.reset(); }, a_model},
    {"close the pool, then its models", written,
     [](World& w) {
       w.pool.reset();
       w.a.reset();
       w.b.reset();
     },
     a_model},
    {"some pages stay", written, [](World& w) { w.a->swap_out(2); }},
    {"all pages stay that can", written, [](World& w) { w.a->swap_out(4); }},
    {"a model comes back to some of its pages", kept, [](World& w) { w.a->swap_in(); }},
    {"a model comes back to pages that stayed and others that came ahead",
     [](World& w) {
       kept(w);
       w.a->warm(2);
     },
     [](World& w) { w.a->swap_in(); }},
    {"pages come ahead", saved, [](World& w) { w.a->warm(3); }},
    {"pages come ahead behind others", kept, [](World& w) { w.a->warm(1); }},
    {"warm pages go", kept, [](World& w) { w.a->cool(1); }},
    {"all warm pages go",
     [](World& w) {
       written(w);
       w.a->swap_out(3);
     },
     [](World& w) { w.a->cool(3); }},
    {"images are parked", saved, park, {}, comes_back},
    {"an image that has grown is parked",
     [](World& w) {
       saved(w);
       w.a->resize(2, 9000);
     },
     park,
     {},
     comes_back},
    {"parked images come back", parked, unpark, {}, comes_back},
    {"close a model that is parked", parked, [](World& w) { w.a.reset(); }},
    {"close a model with warm pages", kept, [](World& w) { w.a.reset(); }, a_warm_model},
};

}  // namespace

std::span<const Scenario> model_scenarios() { return scenarios; }

}  // namespace gpupool

// Fails the n-th driver call, and then the n-th allocation, of every scenario below, for n = 1, 2,
// ... until a run meets no failure: once and from then on, with three codes. After each the content
// is right, the next operation works, and nothing is held once all is closed.
//
//   fault_scenarios [scenario]     the last line is "injections=N failures=M"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>

#include "fault_blocks.h"
#include "fault_runner.h"

using namespace gpupool;

namespace {

const auto nothing = [](World&) {};
const auto resident = [](World& w) { w.a->swap_in(); };
const auto written = [](World& w) {
  w.a->swap_in();
  w.a->write(100);
};
const auto saved = [](World& w) {
  written(w);
  w.a->swap_out();
};

ReservationPtr reserve(World& w, std::size_t pages) {
  return std::make_shared<const Reservation>(w.driver, pages * page_bytes);
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
const auto is_out = [](World& w, bool) { CHECK(!w.a->memory.resident()); };

struct Fd {
  int fd = -1;
  ~Fd() {
    if (fd >= 0) close(fd);
  }
};

const Ended a_mapping{0, 0, 2}, a_model{3, 3, 2}, a_slab_of_pages{0, 1, 1}, a_pinned_slab{1, 0, 1};

const Scenario scenarios[] = {
    {"open a pool", nothing, [](World& w) { PagePool(w.driver, 2 * page_bytes, page_bytes); }},
    {"create pages", nothing, [](World& w) { w.pool->acquire(7, 3); }},
    {"create pages ahead of others", nothing,
     [](World& w) {
       w.pool->acquire(7, 1);
       w.pool->acquire(8, 2);
       w.pool->give_back_all(7);
     }},
    {"export a page", [](World& w) { w.pool->acquire(7, 1); },
     [](World& w) { const Fd fd{w.pool->page(0)->export_fd()}; }},
    {"import a page", [](World& w) { w.pool->acquire(7, 1); },
     [](World& w) {
       const Fd fd{w.pool->page(0)->export_fd()};
       w.made.push_back(Page::import(w.driver, fd.fd, page_bytes));
     }},
    {"reserve addresses", nothing, [](World& w) { reserve(w, 4); }},
    {"map", nothing,
     [](World& w) {
       Mapping mapping(w.driver, reserve(w, 2), w.acquire(7, 2));
       mapping.map();
     },
     a_mapping},
    {"map, unmap and map again", nothing,
     [](World& w) {
       Mapping mapping(w.driver, reserve(w, 2), w.acquire(7, 2));
       mapping.map();
       mapping.unmap();
       mapping.map();
     },
     a_mapping},
    {"host memory", nothing, [](World& w) { HostMemory(w.driver, -1, 3 * mib); }},
    {"host memory over a file", nothing,
     [](World& w) {
       const Fd fd{memfd_create("image", MFD_CLOEXEC)};
       CHECK_EQ(ftruncate(fd.fd, mib), 0);
       HostMemory(w.driver, fd.fd, mib);
     }},
    {"streams and events", resident,
     [](World& w) {
       CopyStream first(w.driver, page_bytes), second(w.driver, page_bytes);
       const Event event(w.driver);
       first.fill(w.a->regions[1]->address() + 64, 0, 64);
       first.record(event);
       second.wait_for(event);
       static_cast<void>(event.done());
       event.wait();
       second.synchronize();
     }},
    {"copies in batches", resident,
     [](World& w) {
       HostMemory memory(w.driver, -1, mib);
       CopyStream stream(w.driver, 3000);
       std::vector<CopySpan> spans;
       for (std::size_t i = 0; i < 4; ++i) {
         spans.push_back({w.a->regions[1]->address() + i * 2048, memory.data() + i * 2048, 1500});
       }
       stream.to_host(spans);
       stream.to_device(spans);
       stream.synchronize();
     }},
    {"ask for free memory", nothing,
     [](World& w) {
       std::size_t free_bytes = 0, total_bytes = 0;
       GPUPOOL_CALL(w.driver, memory_info, &free_bytes, &total_bytes);
     }},
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
    {"create pages ahead", nothing, [](World& w) { w.pool->create_ahead(5); }},
    {"scrub free pages", [](World& w) { w.pool->create_ahead(3); },
     [](World& w) {
       w.add_scrubber();
       while (w.scrubber->scrub_free() > 0) {
       }
     }},
    {"scrub pages before they are used", [](World& w) { w.pool->acquire(7, 2); },
     [](World& w) {
       w.add_scrubber();
       w.scrubber->scrub_owned(7, w.pool->owned(7));
     }},
    {"slabs of pages", nothing, [](World& w) { use_slabs(slabs_of_pages(w)); }, a_slab_of_pages},
    {"pinned slabs", nothing, [](World& w) { use_slabs(pinned_slabs(w)); }},
    {"slabs of pages end with a block in use", nothing,
     [](World& w) { leave_a_block_in_use(slabs_of_pages(w)); }, a_slab_of_pages},
    {"pinned slabs end with a block in use", nothing,
     [](World& w) { leave_a_block_in_use(pinned_slabs(w)); }, a_pinned_slab},
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
    {"close streams and events", nothing,
     [](World& w) {
       CopyStream stream(w.driver, mib);
       Event event(w.driver);
     }},
};

}  // namespace

int main(int count, char** arguments) {
  Totals totals;
  const std::string only = count > 1 ? arguments[1] : "";
  for (const Scenario& scenario : scenarios) {
    if (only.empty() || only == scenario.name) run(scenario, totals);
  }
  if (only.empty()) {
    int missed = 0;
#define MISSED(name, params, args, needs_context)         \
  if (totals.hits[DriverCall::name] == 0) {               \
    ++missed;                                             \
    std::printf("FAILED  no scenario fails %s\n", #name); \
  }
    GPUPOOL_DRIVER_CALLS(MISSED)
#undef MISSED
    std::printf("scenarios=%zu driver_calls_hit=%zu missed=%d\n", std::size(scenarios),
                totals.hits.size() - static_cast<std::size_t>(missed), missed);
    totals.failures += static_cast<std::uint64_t>(missed);
  }
  std::printf("injections=%llu failures=%llu\n", static_cast<unsigned long long>(totals.injections),
              static_cast<unsigned long long>(totals.failures));
  return totals.failures == 0 ? 0 : 1;
}

// Scenarios of what models are made of.
#include <fcntl.h>
#include <sys/mman.h>

#include "fault_blocks.h"
#include "fault_runner.h"
#include "image/run_digests.h"

namespace gpupool {
namespace {

ReservationPtr reserve(World& w, std::size_t pages) {
  return std::make_shared<const Reservation>(w.driver, pages * page_bytes);
}

const Ended a_mapping{0, 0, 2}, a_slab_of_pages{0, 1, 1}, a_pinned_slab{1, 0, 1}, sums{1, 0, 1};

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
    {"digests of many runs", resident,
     [](World& w) {
       const CopyStream stream(w.driver, page_bytes);
       RunDigests digests(w.driver);
       const DevicePtr at = w.a->regions[1]->address();
       const DeviceRun runs[] = {{at, 64}, {at + 128, 64}};
       const std::uint64_t number = digests.enqueue(runs, stream.handle());
       GPUPOOL_CALL(w.driver, stream_synchronize, stream.handle());
       static_cast<void>(digests.take(number));
     },
     sums},
    {"ask for free memory", nothing,
     [](World& w) {
       std::size_t free_bytes = 0, total_bytes = 0;
       GPUPOOL_CALL(w.driver, memory_info, &free_bytes, &total_bytes);
     }},
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
    {"close streams and events", nothing,
     [](World& w) {
       CopyStream stream(w.driver, mib);
       Event event(w.driver);
     }},
};

}  // namespace

std::span<const Scenario> memory_scenarios() { return scenarios; }

}  // namespace gpupool

// What the host device answers once work on it has gone wrong.
#include "two_streams.h"

using namespace gpupool;

namespace {
constexpr Status fault = Status::illegal_address;
}  // namespace

TEST(use_after_unmap_is_a_sticky_fault) {
  Two two;
  const DevicePtr victim = two.mapped(1);
  {
    const auto busy = two.busy(two.other);
    CHECK_OK(two->fill(victim, 1, page_bytes, two.other));
    CHECK_OK(two->unmap(victim, page_bytes));  // while the fill is queued
  }
  CHECK_EQ(two->stream_synchronize(two.other), fault);
  CHECK_EQ(two->stream_synchronize(two.other), fault);
  PageHandle page = 0;
  CHECK_EQ(two->page_create(&page, page_bytes), fault);
  CHECK_EQ(two->fill(two.base, 1, 16, two.other), fault);
  DevicePtr address = 0;
  CHECK_EQ(two->address_reserve(&address, page_bytes), fault);
  // Whatever is asked, and with whatever arguments.
  std::size_t bytes = 0, free_bytes = 0, total_bytes = 0;
  const DevicePtr destination = two.base, source = two.base;
  int fd = -1;
  StreamHandle made = nullptr;
  StreamHandle* const stream_out = &made;
  EventHandle recorded = nullptr;
  EventHandle* const event_out = &recorded;
  PageHandle* const page_out = &page;
  std::vector<std::pair<const char*, Status>> answers;
  const auto ask = [&](const char* name, Status status) { answers.emplace_back(name, status); };
  ask("page_granularity", two->page_granularity(&bytes));
  ask("memory_info", two->memory_info(&free_bytes, &total_bytes));
  ask("page_create", two->page_create(page_out, page_bytes));
  ask("page_release", two->page_release(page));
  ask("page_export", two->page_export(&fd, page));
  ask("page_import", two->page_import(page_out, fd));
  ask("address_reserve", two->address_reserve(&address, page_bytes));
  ask("address_free", two->address_free(address, page_bytes));
  ask("map", two->map(destination, page_bytes, page));
  ask("unmap", two->unmap(destination, page_bytes));
  ask("set_access", two->set_access(destination, page_bytes));
  ask("set_read_only", two->set_read_only(destination, page_bytes));
  ask("host_register", two->host_register(&bytes, sizeof bytes));
  ask("host_unregister", two->host_unregister(&bytes));
  ask("context_synchronize", two->context_synchronize());
  ask("stream_create", two->stream_create(stream_out));
  ask("stream_destroy", two->stream_destroy(made));
  ask("stream_synchronize", two->stream_synchronize(two.other));
  ask("stream_wait_event", two->stream_wait_event(two.other, recorded));
  ask("event_create", two->event_create(event_out));
  ask("event_destroy", two->event_destroy(recorded));
  ask("event_record", two->event_record(recorded, two.other));
  ask("event_query", two->event_query(recorded));
  ask("event_synchronize", two->event_synchronize(recorded));
  ask("copy_to_device", two->copy_to_device(destination, &bytes, 1, two.other));
  ask("copy_to_host", two->copy_to_host(&bytes, source, 1, two.other));
  void* const host[] = {&bytes};
  const std::size_t sizes[] = {1};
  ask("copy_batch_to_device", two->copy_batch_to_device(&source, host, sizes, 1, two.other));
  ask("copy_batch_to_host", two->copy_batch_to_host(host, &source, sizes, 1, two.other));
  ask("fill", two->fill(destination, 1, 1, two.other));
  std::uint64_t sum = 0;
  ask("digest", two->digest(destination, 1, &sum, two.other));
  const DeviceRun run{destination, 1};
  ask("digest_runs", two->digest_runs(&run, 1, &sum, two.other));
  ask("copy_to_device_digest", two->copy_to_device_digest(destination, &bytes, 1, &sum, two.other));
  std::vector<std::string> asked;
  for (const auto& [name, status] : answers) {
    CHECK_EQ(status, fault);
    asked.emplace_back(name);
  }
  std::vector<std::string> all;
#define NAME(name, params, args, needs_context) all.emplace_back(#name);
  GPUPOOL_DRIVER_CALLS(NAME)
#undef NAME
  CHECK(asked == all);
  std::unique_ptr<host::Hold> hold;
  CHECK_EQ(host_device(two.driver())->launch(two.other, {}, [] {}), fault);
  CHECK_EQ(host_device(two.driver())->hold(two.other, &hold), fault);
  CHECK(hold == nullptr);
}

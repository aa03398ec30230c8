// What the host device refuses to digest, or to copy and digest.
#include "bench.h"

using namespace gpupool;

TEST(a_digest_touches_only_what_it_may) {
  Bench bench;
  const DevicePtr base = bench.mapped(3);
  const HostMemory host(bench.driver(), -1, 2 * page_bytes);
  auto* const sums = reinterpret_cast<std::uint64_t*>(bench.staging());
  alignas(64) static std::uint64_t loose[8];
  const auto both = [&](DevicePtr at, const std::byte* from, std::size_t bytes, std::uint64_t* to) {
    if (from == nullptr) return bench->digest(at, bytes, to, bench.stream());
    return bench->copy_to_device_digest(at, from, bytes, to, bench.stream());
  };
  for (const std::byte* from : {static_cast<std::byte*>(nullptr), host.data()}) {
    CHECK_OK(both(base, from, 2 * page_bytes, sums));
    // Addresses behind the end, and those of nothing.
    CHECK_EQ(both(base + 2 * page_bytes, from, 2 * page_bytes, sums), Status::invalid_value);
    CHECK_EQ(both(4096, from, 8, sums), Status::invalid_value);
    // Sums that are not registered, of which one would be too many.
    CHECK_EQ(both(base, from, 8, loose), Status::invalid_value);
    CHECK_EQ(both(base, from, 8, nullptr), Status::invalid_value);
    auto* const last = reinterpret_cast<std::uint64_t*>(bench.staging() + 64 * mib) - 1;
    CHECK_OK(both(base, from, page_bytes, last));
    CHECK_EQ(both(base, from, page_bytes + 1, last), Status::invalid_value);
  }
  CHECK_EQ(both(base, reinterpret_cast<std::byte*>(loose), 8, sums), Status::invalid_value);
  CHECK_EQ(both(base, host.data() + page_bytes, page_bytes + 1, sums), Status::invalid_value);
  CHECK_OK(bench->stream_synchronize(bench.stream()));
  // Mapped, but nobody may touch it.
  PageHandle page = 0;
  DevicePtr closed = 0;
  CHECK_OK(bench->address_reserve(&closed, page_bytes));
  CHECK_OK(bench->page_create(&page, page_bytes));
  CHECK_OK(bench->map(closed, page_bytes, page));
  CHECK_EQ(both(closed, nullptr, 8, sums), Status::invalid_value);
  CHECK_EQ(both(closed, host.data(), 8, sums), Status::invalid_value);
}

TEST(digests_of_runs_touch_only_what_they_may) {
  Bench bench;
  const DevicePtr base = bench.mapped(3);
  auto* const sums = reinterpret_cast<std::uint64_t*>(bench.staging());
  auto* const end = reinterpret_cast<DeviceRun*>(bench.staging() + 64 * mib);
  auto* const runs = end - 3;
  const auto asked = [&](DeviceRun last) {
    runs[0] = {base, 2 * page_bytes};
    runs[1] = {base + 13, 1};
    runs[2] = last;
    return bench->digest_runs(runs, 3, sums, bench.stream());
  };
  CHECK_OK(asked({base + page_bytes, 2 * page_bytes}));
  CHECK_OK(bench->stream_synchronize(bench.stream()));
  CHECK_EQ(asked({base + page_bytes, 2 * page_bytes + 1}), Status::invalid_value);
  CHECK_EQ(asked({4096, 8}), Status::invalid_value);
  CHECK_EQ(asked({base, 0}), Status::invalid_value);
  CHECK_OK(asked({base, 8}));
  CHECK_OK(bench->stream_synchronize(bench.stream()));
  // A table or sums that are not registered, or not all of which are.
  alignas(64) static std::uint64_t loose[8];
  const DeviceRun loose_run{base, 8};
  const StreamHandle stream = bench.stream();
  CHECK_EQ(bench->digest_runs(runs, 3, loose, stream), Status::invalid_value);
  CHECK_EQ(bench->digest_runs(runs, 3, nullptr, stream), Status::invalid_value);
  CHECK_EQ(bench->digest_runs(&loose_run, 1, sums, stream), Status::invalid_value);
  CHECK_EQ(bench->digest_runs(nullptr, 1, sums, stream), Status::invalid_value);
  CHECK_EQ(bench->digest_runs(runs, 4, sums, stream), Status::invalid_value);
  auto* const last_sums = reinterpret_cast<std::uint64_t*>(end) - 2;
  CHECK_EQ(bench->digest_runs(runs, 3, last_sums, stream), Status::invalid_value);
}

// Between the call and the run of it somebody took the memory away, or wrote another table.
TEST(what_digests_of_runs_wait_to_touch_must_stay) {
  for (const int gone : {0, 1, 2, 3}) {
    Bench bench;
    const DevicePtr base = bench.mapped(1);
    alignas(4096) static std::byte sums[4096], table[4096];
    CHECK_OK(bench->host_register(sums, sizeof sums));
    CHECK_OK(bench->host_register(table, sizeof table));
    std::unique_ptr<host::Hold> hold;
    CHECK_OK(host_device(bench.driver())->hold(bench.stream(), &hold));
    auto* const runs = reinterpret_cast<DeviceRun*>(table);
    runs[0] = {base, 4096};
    runs[1] = {base + 4096, 4096};
    CHECK_OK(bench->digest_runs(runs, 2, reinterpret_cast<std::uint64_t*>(sums), bench.stream()));
    switch (gone) {
      case 0: CHECK_OK(bench->unmap(base, page_bytes)); break;
      case 1: CHECK_OK(bench->host_unregister(sums)); break;
      case 2: CHECK_OK(bench->host_unregister(table)); break;
      default: runs[1].address = 4096;
    }
    hold.reset();
    CHECK_EQ(bench->stream_synchronize(bench.stream()), Status::illegal_address);
  }
}

// Between the call and the run of it somebody took the memory away.
TEST(what_a_digest_waits_to_touch_must_stay) {
  for (const bool copies : {false, true}) {
    for (const int gone : {0, 1, 2}) {
      if (gone == 2 && !copies) continue;
      Bench bench;
      const DevicePtr base = bench.mapped(1);
      alignas(4096) static std::byte sums[4096], source[4096];
      CHECK_OK(bench->host_register(sums, sizeof sums));
      CHECK_OK(bench->host_register(source, sizeof source));
      std::unique_ptr<host::Hold> hold;
      CHECK_OK(host_device(bench.driver())->hold(bench.stream(), &hold));
      auto* const to = reinterpret_cast<std::uint64_t*>(sums);
      CHECK_OK(copies
                   ? bench->copy_to_device_digest(base, source, sizeof source, to, bench.stream())
                   : bench->digest(base, sizeof source, to, bench.stream()));
      switch (gone) {
        case 0: CHECK_OK(bench->unmap(base, page_bytes)); break;
        case 1: CHECK_OK(bench->host_unregister(sums)); break;
        default: CHECK_OK(bench->host_unregister(source));
      }
      hold.reset();
      CHECK_EQ(bench->stream_synchronize(bench.stream()), Status::illegal_address);
    }
  }
}

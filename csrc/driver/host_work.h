// What the host driver puts on its streams: checked when it is asked for, and again when it runs.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "digest/digest.h"
#include "driver/host_address_space.h"
#include "driver/host_batch.h"
#include "driver/host_streams.h"

namespace gpupool::host {

class HostWork {
 protected:
  HostWork(std::size_t granularity_bytes, std::unique_ptr<Streams> streams)
      : pages_(granularity_bytes), streams_(std::move(streams)) {}

  static void* pointer(DevicePtr address) { return reinterpret_cast<void*>(address); }

  // `run(begin, end)` does that part and says whether it could.
  template <typename Run>
  Status enqueue(StreamHandle stream, std::size_t units, const Run& run) {
    return streams_->enqueue(stream, {units, [this, run](std::size_t begin, std::size_t end) {
                                        const Status status = run(begin, end);
                                        if (status != Status::success) fault_.store(status);
                                      }});
  }

  // Checked now, and again when it runs: memory gone meanwhile is a use after it was given back.
  template <typename Move>
  Status copy(DevicePtr device, Access access, const void* memory, std::size_t bytes,
              StreamHandle stream, Move move) {
    if (bytes == 0 || !registry_.holds(memory, bytes) ||
        !space_.accessible(device, bytes, access)) {
      return Status::invalid_value;
    }
    return enqueue(stream, bytes, [=, this](std::size_t begin, std::size_t end) {
      const std::size_t n = end - begin;
      return registry_.touch(static_cast<const char*>(memory) + begin, n, [&] {
        return space_.touch(device + begin, n, access, [&] {
          move(begin, n);
          return Status::success;
        });
      });
    });
  }

  // Nothing is copied unless all of it can be, in an order that the streams draw.
  template <typename Destination, typename Memory, typename Move>
  Status copy_batch(const Destination* destinations, const DevicePtr* devices, Access access,
                    const Memory* memories, const std::size_t* sizes, std::size_t count,
                    StreamHandle stream, Move move) {
    if (count == 0 || devices == nullptr || memories == nullptr || sizes == nullptr) {
      return Status::invalid_value;
    }
    for (std::size_t i = 0; i < count; ++i) {
      if (sizes[i] == 0 || !registry_.holds(memories[i], sizes[i]) ||
          !space_.accessible(devices[i], sizes[i], access)) {
        return Status::invalid_value;
      }
    }
    if (overlap(destinations, sizes, count)) return Status::invalid_value;
    std::vector<std::size_t> order(count);
    std::iota(order.begin(), order.end(), std::size_t{0});
    streams_->shuffle(order);
    const auto batch = std::make_shared<Batch<Memory>>(devices, memories, sizes, order);
    return enqueue(stream, batch->bytes(), [=, this](std::size_t begin, std::size_t end) {
      return batch->each(begin, end, [&](DevicePtr device, Memory memory, std::size_t n) {
        return registry_.touch(memory, n, [&] {
          return space_.touch(device, n, access, [&] {
            move(device, memory, n);
            return Status::success;
          });
        });
      });
    });
  }

  static std::size_t pieces_in(std::size_t bytes) {
    return bytes / digest_piece_bytes + (bytes % digest_piece_bytes != 0);
  }
  Status may_digest(DevicePtr device, Access access, std::size_t bytes,
                    const std::uint64_t* sums) const {
    if (bytes == 0 || !registry_.holds(sums, pieces_in(bytes) * sizeof(*sums))) {
      return Status::invalid_value;
    }
    return space_.accessible(device, bytes, access) ? Status::success : Status::invalid_value;
  }

  // Digests pieces of device memory, where it first copies `source` unless that is null.
  Status digest_pieces(DevicePtr device, const void* source, std::size_t bytes, std::uint64_t* sums,
                       StreamHandle stream) {
    const Access access = source == nullptr ? Access::read : Access::write;
    const Status refused = may_digest(device, access, bytes, sums);
    if (refused != Status::success) return refused;
    return enqueue(stream, pieces_in(bytes), [=, this](std::size_t begin, std::size_t end) {
      const std::size_t at = begin * digest_piece_bytes;
      const std::size_t n = std::min(bytes, end * digest_piece_bytes) - at;
      const auto* const from = static_cast<const std::byte*>(source);
      const auto run = [&] {
        return space_.touch(device + at, n, access, [&] {
          for (std::size_t i = begin; i < end; ++i) {
            const std::size_t piece = i * digest_piece_bytes;
            const std::size_t length = std::min(bytes - piece, digest_piece_bytes);
            sums[i] = from == nullptr
                          ? gpupool::digest(pointer(device + piece), length)
                          : copy_with_digest(pointer(device + piece), from + piece, length);
          }
          return Status::success;
        });
      };
      const std::size_t sum_bytes = (end - begin) * sizeof(*sums);
      return from == nullptr ? registry_.touch(sums + begin, sum_bytes, run)
                             : registry_.touch(sums + begin, sum_bytes, from + at, n, run);
    });
  }

  // Digests runs of device memory, as the table says when it runs.
  Status digest_all(const DeviceRun* runs, std::size_t count, std::uint64_t* sums,
                    StreamHandle stream) {
    if (count == 0 || !registry_.holds(runs, count * sizeof(*runs)) ||
        !registry_.holds(sums, count * sizeof(*sums))) {
      return Status::invalid_value;
    }
    for (const DeviceRun* run = runs; run != runs + count; ++run) {
      if (run->bytes == 0 || !space_.accessible(run->address, run->bytes, Access::read)) {
        return Status::invalid_value;
      }
    }
    return enqueue(stream, count, [=, this](std::size_t begin, std::size_t end) {
      const std::size_t n = end - begin;
      return registry_.touch(runs + begin, n * sizeof(*runs), sums + begin, n * sizeof(*sums), [&] {
        Status status = Status::success;
        for (std::size_t i = begin; i < end && status == Status::success; ++i) {
          const DeviceRun run = runs[i];
          status = space_.touch(run.address, run.bytes, Access::read, [&] {
            sums[i] = gpupool::digest(pointer(run.address), run.bytes);
            return Status::success;
          });
        }
        return status;
      });
    });
  }

  Pages pages_;
  AddressSpace space_{pages_};
  Registry registry_;
  std::atomic<Status> fault_{Status::success};
  std::unique_ptr<Streams> streams_;  // last: its threads end before what they touch
};

}  // namespace gpupool::host

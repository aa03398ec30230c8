#include "image/run_digests.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "transfer/transfer.h"

namespace gpupool {

RunDigests::~RunDigests() {
  if (batches_.empty() || device_ended(*driver_)) return;
  for (auto& [number, batch] : batches_) batch.memory->abandon();
}

// One that is used no more, if it is long enough.
RunDigests::Memory RunDigests::memory_of(std::size_t bytes) {
  const auto found = std::find_if(idle_.begin(), idle_.end(),
                                  [&](const Memory& one) { return one->bytes() >= bytes; });
  if (found == idle_.end()) {
    if (!idle_.empty()) idle_.pop_back();  // too short, as others of this size will find
    return std::make_unique<HostMemory>(driver_, -1, std::bit_ceil(bytes));
  }
  Memory memory = std::move(*found);
  idle_.erase(found);
  return memory;
}

std::uint64_t RunDigests::enqueue(std::span<const DeviceRun> runs, StreamHandle stream) {
  if (runs.empty()) throw UsageError("no runs have no digests");
  const std::size_t sum_bytes = runs.size() * sizeof(std::uint64_t);
  Batch batch{memory_of(sum_bytes + runs.size_bytes()), runs.size()};
  auto* const sums = reinterpret_cast<std::uint64_t*>(batch.memory->data());
  auto* const table = reinterpret_cast<DeviceRun*>(batch.memory->data() + sum_bytes);
  std::memcpy(table, runs.data(), runs.size_bytes());
  const auto [entry, is_new] = batches_.emplace(last_ + 1, std::move(batch));
  const Status status = driver_->digest_runs(table, runs.size(), sums, stream);
  if (status != Status::success) {
    idle_.push_back(std::move(entry->second.memory));
    batches_.erase(entry);
    check(*driver_, "digest_runs", status);
  }
  return ++last_;
}

std::vector<std::uint64_t> RunDigests::take(std::uint64_t number) {
  const auto found = batches_.find(number);
  if (found == batches_.end()) throw UsageError("these digests were taken already");
  const auto* const sums = reinterpret_cast<const std::uint64_t*>(found->second.memory->data());
  std::vector<std::uint64_t> taken(sums, sums + found->second.count);
  const auto end = std::next(found);
  for (auto one = batches_.begin(); one != end; one = batches_.erase(one)) {
    idle_.push_back(std::move(one->second.memory));
  }
  return taken;
}

}  // namespace gpupool

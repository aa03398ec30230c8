#include "image/piece_digests.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <utility>

#include "digest/digest.h"

namespace gpupool {
namespace {

// Beyond that a processor's memory is no faster, on the machines that were measured.
constexpr std::size_t threads_max = 8;

}  // namespace

std::vector<Run> in_pieces(std::span<const Run> runs, std::size_t piece_bytes) {
  std::vector<Run> pieces;
  for (const Run& run : runs) {
    for (std::size_t at = run.begin; at < run.end;) {
      const std::size_t end = std::min(run.end, (at / piece_bytes + 1) * piece_bytes);
      pieces.push_back({at, end});
      at = end;
    }
  }
  return pieces;
}

std::optional<std::uint64_t> PieceDigests::of(Run piece) const {
  const auto it = entries_.find(piece.begin);
  if (it == entries_.end() || it->second.end != piece.end) return std::nullopt;
  return it->second.digest;
}

void PieceDigests::set(Run piece, std::uint64_t digest) {
  entries_.insert_or_assign(piece.begin, Entry{piece.end, digest});
}

void PieceDigests::keep(std::span<const Run> pieces) {
  std::map<std::size_t, Entry> kept;
  for (const Run& piece : pieces) {
    if (const auto known = of(piece)) kept[piece.begin] = {piece.end, *known};
  }
  entries_ = std::move(kept);
}

void PieceDigests::complete(std::span<const Run> pieces, const std::byte* data) {
  keep(pieces);
  std::vector<std::pair<Run, Entry*>> lacking;
  for (const Run& piece : pieces) {
    const auto [it, lacks] = entries_.try_emplace(piece.begin, Entry{piece.end, 0});
    if (lacks) lacking.emplace_back(piece, &it->second);
  }
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < lacking.size(); i = next++) {
      const auto& [piece, entry] = lacking[i];
      entry->digest = digest(data + piece.begin, piece.bytes());
    }
  };
  std::vector<std::jthread> others;
  const std::size_t useful =
      std::min({lacking.size(), threads_max, std::size_t{std::thread::hardware_concurrency()}});
  try {
    while (others.size() + 1 < useful) others.emplace_back(work);
  } catch (const std::system_error&) {
    // Without more threads it takes longer.
  }
  work();
}

}  // namespace gpupool

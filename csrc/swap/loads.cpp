// What an arrival copies, and whether it is there then.
#include <algorithm>
#include <string>
#include <utility>

#include "swap/swap.h"

namespace gpupool {
namespace {

// Copies are cut so that each stream has some, however small the model.
constexpr std::size_t loads_a_stream = 4;

constexpr const char* tag_names[] = {"weights", "runtime", "cudagraph", "kv_cache", "workspace"};

std::size_t pieces_in(Run run, std::size_t piece_bytes) {
  return (run.bytes() + piece_bytes - 1) / piece_bytes;
}

}  // namespace

DamagedImage ModelMemory::damaged(const Region& region, Run run, const char* when,
                                  std::vector<PageHandle> pages) {
  return DamagedImage("bytes " + std::to_string(run.begin) + " to " + std::to_string(run.end) +
                          " of a region of " + tag_names[static_cast<std::size_t>(region.tag())] +
                          " are not what was saved" + when +
                          ": memory is faulty, or something wrote to the image",
                      std::move(pages));
}

std::vector<Run> ModelMemory::pieces_of(const Region& region, const RunSet& saved) const {
  std::vector<Run> pieces;
  for (const Run& run : saved.runs()) {
    const std::vector<Run> more = in_pieces(region.image_->cut(run), piece_bytes_);
    pieces.insert(pieces.end(), more.begin(), more.end());
  }
  return pieces;
}

std::uint64_t* ModelMemory::sums(std::size_t count) {
  const std::size_t bytes = count * sizeof(std::uint64_t);
  if (bytes > 0 && (!sums_ || sums_->bytes() < bytes)) {
    sums_.reset();
    sums_ = std::make_unique<HostMemory>(driver_, -1, bytes);
  }
  return sums_ ? reinterpret_cast<std::uint64_t*>(sums_->data()) : nullptr;
}

// One load for pieces that follow upon one another, of which only the last may be short: so the
// sums of a load are those of its pieces. It must not go from one registration of the image into
// another, as where it has grown.
void ModelMemory::join(std::vector<Load>& loads, const Region& region, Run piece, bool is_there,
                       std::size_t most) const {
  Run* const last =
      loads.empty() || loads.back().region != &region || loads.back().is_there != is_there
          ? nullptr
          : &loads.back().run;
  if (last != nullptr && last->end == piece.begin && last->begin % piece_bytes_ == 0 &&
      last->end % piece_bytes_ == 0 && last->bytes() + piece.bytes() <= most &&
      region.image_->cut({last->begin, piece.end}).size() == 1) {
    last->end = piece.end;
  } else {
    loads.push_back({&region, piece, nullptr, is_there});
  }
}

// Of what is saved, the pieces that will be there in full and are not yet, and, unless that is
// ahead of use, those on pages that are warm or shared: also what came ahead was looked at long
// ago, maybe. Sealed regions have no piece on two pages.
std::vector<ModelMemory::Load> ModelMemory::plan_loads(const Counts& until, const Shares& shares,
                                                       bool is_ahead) {
  std::size_t whole = 0;
  for (const RegionPtr& region : regions_) whole += region->saved_.bytes();
  const std::size_t most =
      std::clamp(whole / (loads_a_stream * in_.count()), piece_bytes_, out_.chunk_bytes());
  std::vector<Load> loads;
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    const RegionPtr& region = regions_[i];
    for (const Run& piece : pieces_of(*region, region->saved_)) {
      if (piece.end > until[i] * page_bytes_) continue;
      const bool is_shared = !shares.empty() && shares[i][piece.begin / page_bytes_] != nullptr;
      const bool is_there = is_shared || piece.end <= region->pages_mapped() * page_bytes_;
      if (is_there && (verify_ == Verify::off || is_ahead)) continue;
      join(loads, *region, piece, is_there, most);
    }
  }
  if (verify_ == Verify::off) return loads;
  std::size_t count = 0;
  for (const Load& load : loads) count += pieces_in(load.run, piece_bytes_);
  std::uint64_t* next = sums(count);
  const std::size_t turn = swap_ins_;
  for (std::size_t i = 0; i < loads.size(); ++i) {
    const bool is_due = (i + turn) % sampled_one_in == 0 || (distrusted_ && loads[i].is_there);
    if (verify_ == Verify::sample && !is_due) continue;
    loads[i].sums = next;
    next += pieces_in(loads[i].run, piece_bytes_);
  }
  return loads;
}

void ModelMemory::restore(const std::vector<Load>& loads, const std::vector<Placed>& placed,
                          const std::stop_token& stop, SwapReport& report) {
  const std::int64_t start = driver_->now_ns();
  {
    std::optional<CopyLanes::Window> window;
    if (stop.stop_possible()) window.emplace(driver_, in_, stop);
    for (const Load& load : loads) {
      if (load.is_there) {
        if (load.sums == nullptr) continue;  // none of the sample
        in_.digest(load.region->address() + load.run.begin, load.run.bytes(), load.sums);
      } else {
        in_.to_device(load.region->address() + load.run.begin,
                      load.region->image_->data() + load.run.begin, load.run.bytes(), load.sums);
        report.copied_bytes += load.run.bytes();
      }
    }
  }
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    for (const Run& run : placed[i].zeros) {
      in_.fill(regions_[i]->address() + run.begin, 0, run.bytes());
      report.filled_bytes += run.bytes();
    }
  }
  in_.synchronize();
  if (report.copied_bytes > 0) report.moving_ns = driver_->now_ns() - start;
  verify(loads, report);
}

void ModelMemory::verify(const std::vector<Load>& loads, SwapReport& report) {
  std::vector<Load> wrong;
  std::optional<Load> shared;  // the first that is wrong on a page which may be behind others
  std::vector<PageHandle> pages;
  for (const Load& load : loads) {
    if (load.sums == nullptr) continue;
    std::uint64_t* sum = load.sums;
    for (const Run& piece : in_pieces({&load.run, 1}, piece_bytes_)) {
      if (*sum != load.region->digests_.of(piece)) {
        if (load.is_there && load.region->sealed_) {
          if (!shared) shared = Load{load.region, piece, sum, true};
          const PagePtr& page = load.region->mapping_->pages()[piece.begin / page_bytes_];
          if (pages.empty() || pages.back() != page->handle()) pages.push_back(page->handle());
        } else {
          wrong.push_back({load.region, piece, sum, false});
        }
      }
      ++sum;
    }
    report.verified_bytes += load.run.bytes();
  }
  if (shared) {  // others may be at work on it
    throw damaged(*shared->region, shared->run, " on a page that other models may have as well",
                  std::move(pages));
  }
  if (wrong.empty()) return;
  const std::int64_t start = driver_->now_ns();
  for (const Load& load : wrong) {
    in_.to_device(load.region->address() + load.run.begin,
                  load.region->image_->data() + load.run.begin, load.run.bytes(), load.sums);
    report.recopied_bytes += load.run.bytes();
  }
  in_.synchronize();
  report.moving_ns += driver_->now_ns() - start;
  for (const Load& load : wrong) {
    if (*load.sums == load.region->digests_.of(load.run)) continue;
    throw damaged(*load.region, load.run, ", also when they are copied again");
  }
}

}  // namespace gpupool

// Residency of one model: its regions come in and go out as a whole, at addresses that stay. Some
// of its pages may stay behind their addresses, or come ahead, while it is out: they are warm.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "image/image.h"
#include "image/piece_digests.h"
#include "memory/arena.h"
#include "memory/memory.h"
#include "swap/placement.h"
#include "swap/region.h"
#include "swap/report.h"
#include "transfer/lanes.h"

namespace gpupool {

// A page with the bytes that a model's image has for one of its pages, of which it is the `index`th
// of those that can be warm. Others have it mapped too.
struct SharedPage {
  std::size_t index;
  PagePtr page;
};

// Thread safe; each call is all or nothing. A region of another model is refused by UsageError.
class ModelMemory {
 public:
  // Copies are cut into chunks of `chunk_bytes`, of which `streams` at a time are on their way to
  // the device. Throws DriverError, or UsageError unless page_bytes is a multiple of the driver's
  // granularity and there is a stream and a byte in a chunk.
  ModelMemory(DriverPtr driver, std::size_t page_bytes, std::size_t chunk_bytes,
              std::size_t streams = 2, Verify verify = Verify::always);
  // Waits for what is in flight, unmaps, and lets the addresses go once no tensor holds them. What
  // the driver does not let it wait for stays mapped and pinned for good, and its pages in doubt;
  // so does what it cannot unmap stay mapped, in doubt.
  ~ModelMemory();

  // Reserves addresses and host memory for a region; only while the model is out. A non-negative
  // `image_fd` is a memfd, of at least `bytes` in whole pages of the system, to use as its image.
  // Without any, which a KV cache or a workspace may be, nothing of it is saved. Addresses are kept
  // for `capacity_bytes`, or for `bytes` if that is more. Throws UsageError, DriverError or
  // std::system_error.
  RegionPtr add_region(Tag tag, std::size_t bytes, std::optional<int> image_fd,
                       std::size_t capacity_bytes = 0);

  // Forgets a region and its contents; only while the model is out. Its image goes at once, or with
  // whoever shares it, its addresses with the last tensor that holds them. Throws UsageError.
  void remove_region(const Region& region);
  // Lets all images go as remove_region does; only while the model is out. Whatever would change
  // the model is refused from then on. Throws UsageError.
  void close();
  // How many bytes of images have gone since this was asked last: no longer pinned nor mapped.
  [[nodiscard]] std::size_t take_gone_image_bytes() noexcept;

  // Makes a region `bytes` long, at the addresses it has. What it gains reads as zeros; what it
  // loses is lost. A resident region that grows into new pages is given exactly those, of which
  // the first `clean` read as zeros; one that shrinks waits for the device and returns the pages
  // it no longer maps. The image grows by `image_fd` (see missing_image_bytes) and never shrinks.
  // Throws UsageError, DriverError, std::system_error, or DamagedImage where an image is cut that
  // does not have what was saved; the region is as before then, but for pages that could not be
  // unmapped again: mapped_pages() says what it has.
  std::vector<PagePtr> resize(Region& region, std::size_t bytes, const std::vector<PagePtr>& pages,
                              std::size_t clean, int image_fd);
  // How long a descriptor must be for the image of a region of `bytes`; 0 if none is needed.
  [[nodiscard]] std::size_t missing_image_bytes(const Region& region, std::size_t bytes) const;
  // Pages behind a region now; while the model is out those that are warm.
  [[nodiscard]] std::vector<PagePtr> mapped_pages(const Region& region) const;

  // Cuts the region into blocks for as long as the arena lives, which follows the region's size: to
  // make it smaller than the blocks in use is refused. Throws UsageError if it is cut already.
  std::shared_ptr<Arena> share_out(Region& region, std::size_t alignment);

  // A sealed region has what its image has, for as long as it is: it is mapped for reading alone
  // once it has arrived, so that its pages can be behind other models too. It cannot be written to,
  // adopted or resized. Only while the model is out, without warm pages. Throws UsageError for a
  // region whose image does not have all of it, or that is shared out, and where pages of a model
  // are not whole pieces of what is verified.
  void seal(Region& region);
  void unseal(Region& region);
  // Puts other host memory with the same bytes, which are compared, behind the image of a region of
  // a model that is out: all but the last extent are whole pieces of what is verified. What of
  // images `is_shared` is counted apart as it goes, and of memory that becomes so nothing. False if
  // the driver did not let the memory go that was there. Throws UsageError, also while somebody
  // looks at the image, std::system_error, DriverError, or DamagedImage where a byte is another;
  // nothing has changed then. Without extents the memory stays and only its account is another.
  bool replace_image(Region& region, std::span<const Extent> extents, bool is_shared);
  [[nodiscard]] std::size_t take_gone_shared_bytes() noexcept;

  // How many pages a resident model has: swap_in takes so many, but for those that are warm.
  [[nodiscard]] std::size_t pages_needed() const;
  // Of the pages of a model that is out, those of the regions with an image can be *warm*: mapped,
  // with what the image has of them. They are the first so many of them, in the order of the
  // regions. With a warm page no region can be added, removed, resized or adopted, nor the model
  // closed.
  [[nodiscard]] std::size_t warmable_pages() const;
  [[nodiscard]] std::size_t warm_pages() const;

  // Maps the pages, of which the first `clean` read as zeros, and restores every region; what has
  // no image is zeroed, so that nothing an earlier owner of a page left behind can be read. What is
  // on warm pages is not copied again, only verified. Where it verifies, clean pages are taken for
  // zeros only behind what is written before it is read, a KV cache or a workspace.
  // On an error the model is out as before, or torn if the driver does not let it go back. What
  // arrives is verified; if it is not what it should be after a second copy, throws DamagedImage. A
  // request to stop is met between chunks, at most two of which for each stream are then in flight,
  // and throws Cancelled. Of sealed regions some pages can be `shared`, beside those: they are
  // verified like warm ones. What is wrong on a page that others may have is not copied again.
  SwapReport swap_in(const std::vector<PagePtr>& pages, std::size_t clean = 0,
                     const std::stop_token& stop = {}, std::span<const SharedPage> shared = {});
  // Makes more pages of a model that is out warm, the `shared` ones at their places among them, and
  // verifies what it copies. Throws as swap_in, and UsageError where there are not so many left to
  // be warmed, or a shared one is not of those that come; nothing has changed then.
  SwapReport warm(const std::vector<PagePtr>& pages, std::size_t clean = 0,
                  const std::stop_token& stop = {}, std::span<const SharedPage> shared = {});
  // Unmaps the last `count` of the warm pages and returns them. Throws UsageError, or DriverError:
  // all are warm as before then, or the model is torn.
  std::vector<PagePtr> cool(std::size_t count);
  // Saves what the images lack and unmaps all but the first `keep` pages that can be warm, or all
  // of those: where it verifies, of what was written only pieces that are not what they were, and
  // it audits some of the others, in turn. What is another there is reported and not saved: the
  // next arrivals verify all that stayed. No step may be running. On an error the model is resident
  // as before, or torn if the driver does not let it go back. Of a torn model it saves what a drain
  // has left and unmaps everything; on an error that stays torn.
  SwapReport swap_out(std::size_t keep = 0);
  // The next part of such a swap-out, for who fills its pages meanwhile: what of them goes. First
  // what has nothing to be saved, where something else has; then one region more, saved, until one
  // is left. Without any more parts nothing goes: swap_out does the rest, and reports it all. The
  // model is torn from the first part on; on an error what has gone is gone.
  std::vector<PagePtr> drain(std::size_t keep = 0);

  // The device bytes [begin, end) of a resident region are newer than its image.
  void mark_written(Region& region, const std::vector<Run>& runs);
  // The image was filled by the caller: it is the truth for the whole region, which is out. Whoever
  // digested it meanwhile gives the digests, of every digest_piece_bytes of it and of what is
  // behind the last of them, and they are not made again. Throws UsageError unless there is one for
  // each.
  void adopt_image(Region& region, std::span<const std::uint64_t> digests = {});
  // Lets the images of these regions go, with what they saved kept by the caller and what it
  // digests to kept here. Until they are back the model does not come in, nor change but by regions
  // that are added or removed. Only while it is out and has no warm page. Throws UsageError unless
  // each has an image, which nobody shares and whose image_changes() is as when the caller's copy
  // was begun, or DamagedImage where one has grown and is not what was saved; nothing has changed
  // then.
  void park(const std::vector<RegionPtr>& regions, const std::vector<std::uint64_t>& changes);
  // Memory for what a parked region had, over a descriptor as add_region takes it, to be filled. It
  // counts as an image that has gone if it goes. Throws as add_region.
  [[nodiscard]] std::shared_ptr<HostMemory> make_image(const Region& region, int fd) const;
  // Each of these regions has such memory for its image, with the bytes that were parked. Throws
  // UsageError, and nothing has changed then.
  void unpark(const std::vector<RegionPtr>& regions,
              const std::vector<std::shared_ptr<HostMemory>>& images);
  // Bytes of the image that a swap-in will copy.
  [[nodiscard]] std::size_t saved_bytes(const Region& region) const;
  // What the image should digest to, piece by piece, for who has a copy of it made. Of bytes that
  // are not saved nothing is known, and of none where nothing is verified. Throws UsageError.
  [[nodiscard]] std::vector<std::pair<Run, std::uint64_t>> known_digests(
      const Region& region) const;
  [[nodiscard]] bool resident() const;
  // Pages are still mapped or copies in flight, and the images have all but what a drain has left:
  // only swap_out, to finish, or drain is allowed, and until then no page goes to anyone else.
  [[nodiscard]] bool torn() const;
  [[nodiscard]] std::size_t page_bytes() const noexcept { return page_bytes_; }

 private:
  // leaving: torn by drain() alone, with nothing in flight
  enum class State { out, resident, leaving, torn, closed };
  using Counts = std::vector<std::size_t>;  // of pages, for each region
  void require(State state, const char* what) const;
  void require_cold(const char* what) const;
  void require_unparked(const char* what) const;
  void check_runs(const Region& region, const std::vector<Run>& runs) const;
  void check_pages(const std::vector<PagePtr>& pages, std::size_t count, std::size_t clean) const;
  void require_own(const Region& region) const;
  static void require_unsealed(const Region& region);
  [[nodiscard]] std::size_t all_pages() const;
  [[nodiscard]] std::size_t pages_mapped() const;
  [[nodiscard]] Counts mapped_counts() const;
  // How many pages of each region are among the first `count` of those that can be warm.
  [[nodiscard]] Counts among_first(std::size_t count) const;
  // By region and page: what is to be there, or null. Empty: nothing is shared.
  using Shares = std::vector<std::vector<PagePtr>>;
  [[nodiscard]] Shares shares_of(std::span<const SharedPage> shared,
                                 const std::vector<PagePtr>& pages, std::size_t clean,
                                 const Counts& until) const;
  SwapReport arrive(const Counts& until, const std::vector<PagePtr>& pages, std::size_t clean,
                    const std::stop_token& stop, const Shares& shares, bool is_ahead);
  [[nodiscard]] bool takes_clean(const Region& region) const;
  std::vector<Placed> map_more(const Counts& until, const std::vector<PagePtr>& pages,
                               std::size_t clean, const Shares& shares, bool is_ahead);
  void make_read_only();
  // One copy of an arrival, or what of it is there already.
  struct Load {
    const Region* region;
    Run run;
    std::uint64_t* sums;  // of its pieces; null: not verified
    bool is_there;        // on a warm or shared page, to be verified alone
  };
  // Where in the regions the next audit goes on.
  struct Place {
    std::size_t region = 0, byte = 0;
  };
  // What of it a swap-out looks at although nobody said that it was written.
  struct Audit {
    std::vector<Load> loads;
    std::size_t pieces = 0;
    Place next;
  };
  // What a swap-out saves of a region.
  struct Save {
    Region* region;
    RunSet saved;
    PieceDigests digests;
    std::vector<Run> pieces;   // whose digest may have changed
    std::vector<Run> in_part;  // of those copied, the ones that were not marked throughout
  };
  [[nodiscard]] std::vector<Load> plan_loads(const Counts& until, const Shares& shares,
                                             bool is_ahead);
  void restore(const std::vector<Load>& loads, const std::vector<Placed>& placed,
               const std::stop_token& stop, SwapReport& report);
  void verify(const std::vector<Load>& loads, SwapReport& report);
  void join(std::vector<Load>& loads, const Region& region, Run piece, bool is_there,
            std::size_t most) const;
  [[nodiscard]] std::vector<Region*> unsaved();
  Place save(const std::vector<Region*>& regions, SwapReport& report, bool audits = false);
  void save_written(const std::vector<Region*>& regions, SwapReport& report);
  Place save_changed(const std::vector<Region*>& regions, Audit audit, SwapReport& report);
  void settle_in_part(Save& save);
  [[nodiscard]] bool is_copied(const Save& save, Run piece);
  [[nodiscard]] Audit plan_audit() const;
  void audited(const Audit& audit, SwapReport& report) const;
  [[nodiscard]] std::vector<Run> pieces_of(const Region& region, const RunSet& saved) const;
  [[nodiscard]] static DamagedImage damaged(const Region& region, Run run, const char* when,
                                            std::vector<PageHandle> pages = {});
  [[nodiscard]] PieceDigests digests_in_one(const Region& region) const;
  std::uint64_t* sums(std::size_t count);
  std::vector<PagePtr> unmap_or_undo(const Counts& until);
  void unmap_until(const Counts& until);
  [[nodiscard]] bool ended() noexcept;
  std::vector<PagePtr> shrink_resident(Region& region, std::size_t bytes);
  void grow_resident(Region& region, std::size_t bytes, const std::vector<PagePtr>& pages,
                     std::size_t clean);

  DriverPtr driver_;
  std::size_t page_bytes_;
  const std::size_t piece_bytes_;  // of what is digested
  const Verify verify_;
  std::size_t swap_ins_ = 0;
  std::unique_ptr<HostMemory> sums_;
  mutable std::mutex mutex_;
  std::atomic<State> state_ = State::out;  // changed with mutex_ held
  std::vector<RegionPtr> regions_;
  // Of the warm pages the first so many are as the model left them, also where it had no image.
  std::size_t as_left_ = 0;
  bool distrusted_ = false;  // of what stayed, all is verified: some of it was written unmarked
  Place audit_from_;
  bool drains_ = false;            // where it is torn, some of it may be unsaved
  SwapReport drained_;             // what the parts of a swap-out have done so far
  std::size_t drained_keep_ = 0;   // and how many warm pages they leave at most
  std::size_t strayed_bytes_ = 0;  // unmarked, in pieces marked in part, and not reported yet
  const std::shared_ptr<std::atomic<std::size_t>> gone_image_bytes_ =
      std::make_shared<std::atomic<std::size_t>>(0);
  const std::shared_ptr<std::atomic<std::size_t>> gone_shared_bytes_ =
      std::make_shared<std::atomic<std::size_t>>(0);
  CopyLanes in_;
  CopyStream out_;
};

}  // namespace gpupool

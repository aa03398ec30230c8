// A range of device addresses of one tag, and its bytes on the host.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>

#include "image/image.h"
#include "image/piece_digests.h"
#include "memory/arena.h"
#include "memory/memory.h"

namespace gpupool {

// What a region holds, which says what a swap-out does with it.
enum class Tag {
  weights,    // copied out once, then again only where marked as written
  runtime,    // copied out every time: buffers that a step may change
  cudagraph,  // copied out every time
  kv_cache,   // copied out where marked as written
  workspace,  // thrown away
};

class ModelMemory;

// A range of device addresses of one tag, with a host image of the same size behind it. Its size
// can change up to a capacity; its addresses stay.
class Region {
 public:
  [[nodiscard]] Tag tag() const noexcept { return tag_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  // In whole pages.
  [[nodiscard]] std::size_t span_bytes() const noexcept;
  [[nodiscard]] std::size_t capacity_bytes() const noexcept { return reservation_->bytes(); }
  [[nodiscard]] DevicePtr address() const noexcept { return reservation_->address(); }
  // The image, which stays pinned and mapped for as long as somebody has it. Null for a region that
  // has none, as a workspace, or none any more.
  [[nodiscard]] std::shared_ptr<HostMemory> share_image() const;
  [[nodiscard]] std::byte* image() const;
  // Host memory behind it, in whole pages of the system.
  [[nodiscard]] std::size_t image_bytes() const;
  // Whether it is counted as shared.
  [[nodiscard]] bool image_is_shared() const noexcept { return image_is_shared_; }
  // Whether somebody else keeps what the image had, see ModelMemory::park.
  [[nodiscard]] bool parked() const noexcept { return parked_; }
  // Counts what may have changed the image, so that who has a copy of it knows.
  [[nodiscard]] std::uint64_t image_changes() const noexcept { return image_changes_; }
  [[nodiscard]] const ReservationPtr& reservation() const noexcept { return reservation_; }

 private:
  friend class ModelMemory;
  Region(Tag tag, std::size_t bytes, std::size_t page_bytes, ReservationPtr reservation,
         std::shared_ptr<HostMemory> image);
  [[nodiscard]] std::shared_ptr<HostMemory> take_image();
  [[nodiscard]] std::shared_ptr<HostMemory> take_image_unshared();
  void put_image(std::shared_ptr<HostMemory> image);
  [[nodiscard]] bool has_image() const noexcept;  // here or parked
  [[nodiscard]] std::size_t pages() const noexcept { return span_bytes() / page_bytes_; }
  [[nodiscard]] std::size_t pages_mapped() const noexcept;

  Tag tag_;
  std::atomic<std::size_t> bytes_;
  std::size_t page_bytes_;
  ReservationPtr reservation_;
  mutable std::mutex image_mutex_;  // besides the model's, of which a reader needs only one
  std::shared_ptr<HostMemory> image_;
  std::atomic<bool> parked_ = false;
  std::atomic<std::uint64_t> image_changes_ = 0;
  std::optional<Mapping> mapping_;
  std::weak_ptr<Arena> arena_;
  bool sealed_ = false;
  std::atomic<bool> image_is_shared_ = false;
  RunSet saved_;          // bytes for which the image is worth restoring
  RunSet written_;        // bytes for which the device is newer than the image
  PieceDigests digests_;  // of every piece of saved_, unless nothing is verified
};

using RegionPtr = std::shared_ptr<Region>;

}  // namespace gpupool

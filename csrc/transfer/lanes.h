// Several streams that copy to the device side by side, as if they were one.
#pragma once

#include <memory>
#include <stop_token>
#include <vector>

#include "transfer/transfer.h"

namespace gpupool {

// Each call goes to the next stream in turn, so that what one call puts there is in no order with
// what another does; a call puts one piece of work.
class CopyLanes {
 public:
  // Throws DriverError, or UsageError unless there is at least one.
  CopyLanes(const DriverPtr& driver, std::size_t chunk_bytes, std::size_t count);

  // All asynchronous; throw DriverError, after which some may be in flight until synchronize().
  // With `sums` what has arrived is digested too, as Driver::copy_to_device_digest says. A copy
  // with sums or in a window is at most a chunk.
  void to_device(DevicePtr destination, const std::byte* source, std::size_t bytes,
                 std::uint64_t* sums);
  void digest(DevicePtr memory, std::size_t bytes, std::uint64_t* sums);
  void fill(DevicePtr destination, std::uint8_t value, std::size_t bytes);  // none for no bytes
  // Waits for all of them, also after one fails; throws the first DriverError.
  void synchronize();
  // As CopyStream::ended, of all.
  [[nodiscard]] bool ended() noexcept;
  [[nodiscard]] std::size_t count() const noexcept { return streams_.size(); }

  // While it lives, at most two copies of each stream are in flight at a time, and a request to
  // stop makes to_device() throw Cancelled. One at a time.
  class Window {
   public:
    Window(const DriverPtr& driver, CopyLanes& lanes, std::stop_token stop);  // throws DriverError
    ~Window() { lanes_.window_ = nullptr; }
    Window(const Window&) = delete;
    Window& operator=(const Window&) = delete;

   private:
    friend class CopyLanes;
    struct Events {
      explicit Events(const DriverPtr& driver) : one(driver), other(driver) {}
      Event one, other;
      bool turn = false;
    };
    CopyLanes& lanes_;
    std::stop_token stop_;
    std::vector<std::unique_ptr<Events>> events_;
  };

 private:
  std::vector<std::unique_ptr<CopyStream>> streams_;
  std::size_t next_ = 0;
  Window* window_ = nullptr;
};

}  // namespace gpupool

// What a swap verifies, what it took, and what it says where bytes are not what they were.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "driver/driver.h"

namespace gpupool {

// Which copies of a swap-in are held against the digests made when the image was.
enum class Verify {
  off,
  sample,  // one in so many, each in turn
  always,
};

inline constexpr std::size_t sampled_one_in = 16;

// An image does not have the bytes that it had when it was saved, or copies of it do not arrive; or
// pages that other models may have as well do not have them: those of which the driver's handles
// are named.
class DamagedImage final : public std::runtime_error {
 public:
  explicit DamagedImage(const std::string& what, std::vector<PageHandle> pages = {})
      : std::runtime_error(what), pages_(std::move(pages)) {}
  [[nodiscard]] const std::vector<PageHandle>& pages() const noexcept { return pages_; }

 private:
  std::vector<PageHandle> pages_;
};

struct SwapReport {
  std::int64_t map_ns = 0;     // mapping and setting access, or unmapping
  std::int64_t copy_ns = 0;    // copies and fills, from the first enqueued to all complete
  std::int64_t moving_ns = 0;  // of those the part in which bytes went over the link
  std::int64_t total_ns = 0;
  std::size_t copied_bytes = 0;
  std::size_t filled_bytes = 0;
  std::size_t verified_bytes = 0;  // found to be what they should be, copied or there already
  std::size_t recopied_bytes = 0;  // that were not at first, and were at a second attempt
  std::size_t shared_bytes = 0;    // on pages that others have as well
  std::size_t audited_bytes = 0;   // that nobody said were written, and a swap-out looked at
  std::size_t unmarked_bytes = 0;  // of those, in pieces that were written all the same
  std::size_t pages = 0;
  std::size_t ahead_bytes = 0;  // of the copied, what nobody waited for
  std::int64_t ahead_ns = 0;    // of moving_ns, what that took
};

// Of one after the other.
[[nodiscard]] inline SwapReport operator+(const SwapReport& a, const SwapReport& b) {
  return SwapReport{a.map_ns + b.map_ns,
                    a.copy_ns + b.copy_ns,
                    a.moving_ns + b.moving_ns,
                    a.total_ns + b.total_ns,
                    a.copied_bytes + b.copied_bytes,
                    a.filled_bytes + b.filled_bytes,
                    a.verified_bytes + b.verified_bytes,
                    a.recopied_bytes + b.recopied_bytes,
                    a.shared_bytes + b.shared_bytes,
                    a.audited_bytes + b.audited_bytes,
                    a.unmarked_bytes + b.unmarked_bytes,
                    a.pages + b.pages,
                    a.ahead_bytes + b.ahead_bytes,
                    a.ahead_ns + b.ahead_ns};
}

}  // namespace gpupool

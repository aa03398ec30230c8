#include <algorithm>
#include <utility>

#include "memory/memory.h"

namespace gpupool {

Reservation::Reservation(DriverPtr driver, std::size_t bytes)
    : driver_(std::move(driver)), bytes_(bytes) {
  GPUPOOL_CALL(driver_, address_reserve, &address_, bytes);
}

Reservation::~Reservation() {
  if (!kept_) static_cast<void>(driver_->address_free(address_, bytes_));
}

Mapping::Mapping(DriverPtr driver, ReservationPtr reservation, std::vector<PagePtr> pages)
    : driver_(std::move(driver)), reservation_(std::move(reservation)), pages_(std::move(pages)) {
  if (pages_.empty()) throw UsageError("a mapping has at least one page");
  check_pages({});
}

void Mapping::check_pages(const std::vector<PagePtr>& more) const {
  const auto other_size = [&](const PagePtr& page) { return page->bytes() != pages_[0]->bytes(); };
  const std::size_t all = pages_.size() + more.size();
  if (std::any_of(pages_.begin(), pages_.end(), other_size) ||
      std::any_of(more.begin(), more.end(), other_size) ||
      all * pages_[0]->bytes() > reservation_->bytes()) {
    throw UsageError("the pages of a mapping must be of one size and fit its reservation");
  }
}

Mapping::~Mapping() {
  // An unmap that fails leaves the range mapped, where a tensor may still read and write: its pages
  // must be nobody else's, nor its addresses.
  if (mapped_bytes_ == 0) return;
  if (driver_->unmap(reservation_->address(), mapped_bytes_) != Status::success) abandon();
}

void Mapping::abandon() noexcept {
  if (mapped_bytes_ == 0) return;
  reservation_->keep();
  const std::size_t mapped = mapped_bytes_ / pages_[0]->bytes();
  for (std::size_t i = 0; i < mapped; ++i) pages_[i]->put_in_doubt();
  accessible_ = false;
  mapped_bytes_ = 0;
}

void Mapping::map() {
  if (accessible_) return;
  unmap();  // what an earlier failure left
  map_from(0);
  accessible_ = true;
}

// Maps the pages from `first` on, which are not, and makes them accessible.
void Mapping::map_from(std::size_t first) {
  const std::size_t page_bytes = pages_[0]->bytes();
  const DevicePtr start = reservation_->address() + first * page_bytes;
  std::size_t bytes = 0;
  const char* call = "map";
  Status status = Status::success;
  for (std::size_t i = first; i < pages_.size(); ++i) {
    status = driver_->map(start + bytes, page_bytes, pages_[i]->handle());
    if (status != Status::success) break;
    bytes += page_bytes;
  }
  if (status == Status::success) {
    call = "set_access";  // once for the whole run: it costs far more than a map
    status = driver_->set_access(start, bytes);
  }
  if (status != Status::success && bytes > 0 && driver_->unmap(start, bytes) == Status::success) {
    bytes = 0;
  }
  mapped_bytes_ += bytes;
  check(*driver_, call, status);
}

void Mapping::extend(const std::vector<PagePtr>& more) {
  if (!accessible_) throw UsageError("only what is mapped can be extended");
  if (more.empty()) return;
  const std::size_t before = pages_.size();
  check_pages(more);
  pages_.insert(pages_.end(), more.begin(), more.end());
  try {
    map_from(before);
  } catch (...) {
    pages_.resize(mapped_bytes_ / pages_[0]->bytes());
    throw;
  }
}

std::vector<PagePtr> Mapping::shrink(std::size_t pages) {
  if (!accessible_ || pages == 0 || pages > pages_.size()) {
    throw UsageError("a mapping shrinks while it is mapped, to one page or more that it has");
  }
  const auto first = pages_.begin() + static_cast<std::ptrdiff_t>(pages);
  std::vector<PagePtr> gone(first, pages_.end());
  if (gone.empty()) return gone;
  const std::size_t kept_bytes = pages * pages_[0]->bytes();
  GPUPOOL_CALL(driver_, unmap, reservation_->address() + kept_bytes, mapped_bytes_ - kept_bytes);
  mapped_bytes_ = kept_bytes;
  read_only_bytes_ = std::min(read_only_bytes_, kept_bytes);
  pages_.resize(pages);
  return gone;
}

void Mapping::make_read_only() {
  if (read_only_bytes_ == mapped_bytes_) return;
  GPUPOOL_CALL(driver_, set_read_only, reservation_->address() + read_only_bytes_,
               mapped_bytes_ - read_only_bytes_);
  read_only_bytes_ = mapped_bytes_;
}

void Mapping::unmap() {
  if (mapped_bytes_ == 0) return;
  GPUPOOL_CALL(driver_, unmap, reservation_->address(), mapped_bytes_);
  read_only_bytes_ = 0;
  mapped_bytes_ = 0;
  accessible_ = false;
}

}  // namespace gpupool

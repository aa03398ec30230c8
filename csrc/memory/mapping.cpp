#include <algorithm>
#include <utility>

#include "memory/memory.h"

namespace gpupool {

Reservation::Reservation(DriverPtr driver, std::size_t bytes)
    : driver_(std::move(driver)), bytes_(bytes) {
  GPUPOOL_CALL(driver_, address_reserve, &address_, bytes);
}

Reservation::~Reservation() { static_cast<void>(driver_->address_free(address_, bytes_)); }

Mapping::Mapping(DriverPtr driver, ReservationPtr reservation, std::vector<PagePtr> pages)
    : driver_(std::move(driver)), reservation_(std::move(reservation)), pages_(std::move(pages)) {
  const bool one_size =
      !pages_.empty() && std::all_of(pages_.begin(), pages_.end(), [&](auto& page) {
        return page->bytes() == pages_[0]->bytes();
      });
  if (!one_size || bytes() > reservation_->bytes()) {
    throw UsageError("the pages of a mapping must be of one size and fit its reservation");
  }
}

Mapping::~Mapping() {
  // An unmap that fails leaves the range mapped; the driver then refuses to free the addresses,
  // so they are lost but never reused while something is behind them.
  if (mapped_bytes_ > 0) static_cast<void>(driver_->unmap(reservation_->address(), mapped_bytes_));
}

void Mapping::map() {
  if (accessible_) return;
  unmap();  // what an earlier failure left
  const DevicePtr start = reservation_->address();
  const char* call = "map";
  Status status = Status::success;
  for (const PagePtr& page : pages_) {
    status = driver_->map(start + mapped_bytes_, page->bytes(), page->handle());
    if (status != Status::success) break;
    mapped_bytes_ += page->bytes();
  }
  if (status == Status::success) {
    call = "set_access";  // once for the whole run: it costs far more than a map
    status = driver_->set_access(start, mapped_bytes_);
  }
  if (status != Status::success) {
    if (mapped_bytes_ > 0 && driver_->unmap(start, mapped_bytes_) == Status::success) {
      mapped_bytes_ = 0;
    }
    check(*driver_, call, status);
  }
  accessible_ = true;
}

void Mapping::unmap() {
  if (mapped_bytes_ == 0) return;
  GPUPOOL_CALL(driver_, unmap, reservation_->address(), mapped_bytes_);
  mapped_bytes_ = 0;
  accessible_ = false;
}

}  // namespace gpupool

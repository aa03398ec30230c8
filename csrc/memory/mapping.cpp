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
  if (pages_.empty() || bytes() > reservation_->bytes()) {
    throw UsageError("the pages of a mapping must fit its reservation");
  }
  map();
}

Mapping::~Mapping() {
  // An unmap that fails leaves the range mapped; the driver then refuses to free the addresses,
  // so they are lost but never reused while something is behind them.
  if (mapped_) static_cast<void>(driver_->unmap(reservation_->address(), bytes()));
}

void Mapping::map() {
  const DevicePtr start = reservation_->address();
  DevicePtr address = start;
  Status status = Status::success;
  const char* call = "map";
  for (const PagePtr& page : pages_) {
    status = driver_->map(address, page->bytes(), page->handle());
    if (status != Status::success) break;
    address += page->bytes();
  }
  if (status == Status::success) {
    call = "set_access";  // once for the whole run: it costs far more than a map
    status = driver_->set_access(start, bytes());
  }
  if (status != Status::success) {
    if (address > start) static_cast<void>(driver_->unmap(start, address - start));
    check(*driver_, call, status);
  }
  mapped_ = true;
}

void Mapping::unmap() {
  GPUPOOL_CALL(driver_, unmap, reservation_->address(), bytes());
  mapped_ = false;
}

}  // namespace gpupool
